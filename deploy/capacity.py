"""Computes what a server of `deit serve` can take, from a few measured times. docs/capacity.md explains the formulas.

    python deploy/capacity.py --batch-ms 1:35 --batch-ms 16:400 --decode-ms 5 --cores 2 --rate 60 --deadline-ms 3000

Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server. Times are seconds.

    Attributes:
        fixed: Part of the time of a batch that does not depend on its images.
        per_image: Time that each image adds to it.
        decode: Time in which one core decodes an image.
        cores: Cores that decoding and the model share.
        batch: Images of a batch at most (`--max-batch`).
        queue: Images that wait at most (`--max-queue`).
        wait: Time that a batch waits to become full (`--max-wait-ms`).
    """

    fixed: float
    per_image: float
    decode: float
    cores: int
    batch: int = 16
    queue: int = 96
    wait: float = 0.005

    def seconds(self, images: float) -> float:
        """Returns the time between two batches of so many images: that of the model, and of decoding their successors.

        The model uses all cores, and decoding takes its share of the same cores.
        """
        return self.fixed + images * (self.per_image + self.decode / self.cores)

    @property
    def capacity(self) -> float:
        """Images per second with full batches."""
        return self.batch / self.seconds(self.batch)

    def mean_latency(self, rate: float) -> float:
        """Returns the mean time of a request of one image at a rate of random arrivals below the capacity.

        Follows the images that wait when a batch begins, from batch to batch (a Markov chain). It takes the mean number
        of images in the server over time; that number by the rate is the mean time (Little's law).
        """
        odds = [0.0] * (self.queue + 1)
        odds[0] = 1.0
        longest = self.seconds(self.batch) + self.wait
        most = math.ceil(rate * longest + 10 * math.sqrt(rate * longest) + 10)  # arrivals during a batch
        arriving = {n: _poisson(rate * self._cycle(n), most) for n in range(self.batch + 1)}
        for _ in range(400):
            following = [0.0] * len(odds)
            for waiting, share in enumerate(odds):
                if share > 1e-12:
                    taken = min(waiting, self.batch)
                    for number, chance in enumerate(arriving[taken]):
                        following[min(waiting - taken + number, self.queue)] += share * chance
            odds = following
        inside = whole = 0.0
        for waiting, share in enumerate(odds):
            cycle = self._cycle(min(waiting, self.batch))
            inside += share * (max(waiting, 1) * cycle + rate * cycle**2 / 2)
            whole += share * (cycle + (0 if waiting else 1 / rate))
        return self.decode + inside / whole / rate

    def _cycle(self, waiting: int) -> float:
        """Returns the time of a batch of what waits; of none: of the next one that comes, which waits for others."""
        return self.seconds(waiting) if waiting else self.wait + self.seconds(1)

    def worst_latency(self) -> float:
        """Returns the time of a request that took the last place: a batch that has just begun, and the queue."""
        return self.decode + (self.queue + self.batch) / self.capacity

    def latency_of(self, clients: int) -> float:
        """Returns the mean time of a request when so many clients send one image at a time without a pause (Little)."""
        return clients / self.throughput_of(clients)

    def throughput_of(self, clients: int) -> float:
        """Returns the images per second of such clients, who fill a batch if there are two batches of them."""
        images = min(max(clients / 2, 1.0), float(self.batch))
        return min(self.capacity, images / self.seconds(images))

    def longest_queue(self, deadline: float) -> int:
        """Returns the largest queue with which every accepted request is answered within a deadline."""
        return math.floor((deadline - self.decode) * self.capacity) - self.batch

    def servers(self, rate: float, share: float = 0.7) -> int:
        """Returns how many servers a rate needs when each is to be busy for a share of its time at most."""
        return math.ceil(rate / (share * self.capacity))


def _poisson(mean: float, most: int) -> list[float]:
    """Returns the odds of 0, 1, ... arrivals; the last one holds the rest."""
    odds = [math.exp(-mean)]
    for number in range(1, most):
        odds.append(odds[-1] * mean / number)
    return [*odds, max(1 - sum(odds), 0.0)]


def fitted(times: dict[int, float]) -> tuple[float, float]:
    """Returns the fixed part and the part per image of measured batches, by least squares.

    Args:
        times: Images of a batch -> seconds in the model. One batch alone is taken as all per image.
    """
    if len(times) == 1:
        ((images, seconds),) = times.items()
        return 0.0, seconds / images
    mean_images, mean_seconds = sum(times) / len(times), sum(times.values()) / len(times)
    above = sum((images - mean_images) * (seconds - mean_seconds) for images, seconds in times.items())
    slope = above / sum((images - mean_images) ** 2 for images in times)
    return max(mean_seconds - slope * mean_images, 0.0), slope


def main() -> None:
    """Prints the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch-ms", action="append", required=True, metavar="IMAGES:MS", help="time in the model; twice"
    )
    parser.add_argument("--decode-ms", type=float, required=True, help="time in which a core decodes an image")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--max-queue", type=int, default=96)
    parser.add_argument("--rate", type=float, required=True, help="images per second at the busiest time")
    parser.add_argument("--deadline-ms", type=float, default=60_000)
    args = parser.parse_args()
    times = {int(images): float(ms) / 1e3 for images, _, ms in (given.partition(":") for given in args.batch_ms)}
    fixed, per_image = fitted(times)
    server = Server(
        fixed=fixed,
        per_image=per_image,
        decode=args.decode_ms / 1e3,
        cores=args.cores,
        batch=args.max_batch,
        queue=args.max_queue,
    )
    count = server.servers(args.rate)
    print(f"a server answers at most        {server.capacity:.1f} images/s")
    print(f"servers for {args.rate:g} images/s       {count} (each busy for at most 70 %)")
    print(f"mean time of a request there    {1e3 * server.mean_latency(args.rate / count):.0f} ms")
    print(f"longest time of one accepted    {1e3 * server.worst_latency():.0f} ms with --max-queue {server.queue}")
    longest = server.longest_queue(args.deadline_ms / 1e3)
    if longest < 1:
        print(f"no queue keeps {args.deadline_ms:g} ms: lower --max-batch, or take a smaller model")
    else:
        print(f"for {args.deadline_ms:g} ms at most            --max-queue {longest} or less")


if __name__ == "__main__":
    main()
