"""A bulk job on a local Ray cluster of two nodes, one of which is killed in the middle.

    python benchmarks/bulk_on_ray.py CIFAR.parquet... [--count 5000]

Starts two raylets on this machine (`ray.cluster_utils.Cluster`), begins a job over shards with a predictor on each, and
kills the second node when a third of the units is done. The parts must have the same bytes as those of a job without
Ray, and the audit with contents must find every input exactly once.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import ray
from harness import report
from ray.cluster_utils import Cluster

from bulk import images_of, make_model, parts, write_inputs
from deit.bulk.auditing import audit
from deit.bulk.identity import BulkOptions
from deit.bulk.running import BulkRequest, run_bulk


def main() -> None:
    """Runs the job with and without Ray, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="Parquet files with a column `image` of bytes")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--unit-images", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        model = make_model(root / "model")
        source = write_inputs(root, "shards", images_of(arguments.tables, arguments.count), arguments.unit_images)
        options = BulkOptions(unit_images=arguments.unit_images)

        def request(name: str, on: str) -> BulkRequest:
            return BulkRequest(
                model=str(model), inputs=[str(source)], out=root / name, options=options, device="cpu",
                engine="torch", on=on, workers=2 if on == "ray" else None,
            )  # fmt: skip

        run_bulk(request("alone", "local"))
        units = len(parts(root / "alone"))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        killed: list[int] = []

        def kill() -> None:
            while len(parts(root / "ray")) < units // 3:
                time.sleep(0.01)
            cluster.remove_node(second, allow_graceful=False)
            killed.append(len(parts(root / "ray")))

        thread = threading.Thread(target=kill)
        thread.start()
        begin = time.perf_counter()
        result = run_bulk(request("ray", "ray"), lambda done, total: print(f"{done} of {total}", flush=True))
        seconds = time.perf_counter() - begin
        thread.join()
        limit = time.monotonic() + 60  # the cluster notices it by missing heartbeats
        while all(node["Alive"] for node in ray.nodes()) and time.monotonic() < limit:
            time.sleep(0.5)
        nodes = [node["Alive"] for node in ray.nodes()]
        ray.shutdown()
        cluster.shutdown()
        found = audit(root / "ray", contents=True)
        same = [path.read_bytes() == (root / "ray" / path.name).read_bytes() for path in parts(root / "alone")]
        assert not found.problems, found.problems[:3]
        assert result.images == found.compared == arguments.count
        assert all(same), "the bytes of parts differ"
        assert sorted(nodes) == [False, True], nodes
        assert killed[0] < units, "the node was killed when all was done; pass a larger --count"
        row = {"images": found.found, "units": units, "killed at unit": killed[0], "equal parts": sum(same)}
        report("bulk-on-ray", [{**row, "seconds": seconds}], write=False)


if __name__ == "__main__":
    main()
