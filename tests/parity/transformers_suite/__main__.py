"""Runs the common tests of transformers, for DeiT and ViT, on the classes of this package.

    python -m tests.parity.transformers_suite                       # on ours: about four minutes
    python -m tests.parity.transformers_suite --side transformers   # on transformers' own, the control

Not part of `make test`: the tests come from transformers' source distribution, which is fetched from the package
index in the installed version, with `parameterized`. Nothing of it is kept, unless `--folder` says where. The testers
of models and processors are in `cases.py`; what the tests ask of private parts of transformers is answered in
`plumbing.py`. Tests that fail must be those of `known.toml`, which says why; a failure that is not there, or an entry
that passes, is an error (exit code 1). Further options go to pytest: `-k test_save_load`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# What the tests import and the source distribution lacks.
STANDINS = {
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "output_hidden_states": True, "output_attentions": True, "return_dict": False, "dtype": "float16",
    "architectures": ["DeiTModel"], "id2label": {0: "label"}, "label2id": {"label": 0}, "problem_type": "regression",
}
""",
    "../utils/fetch_hub_objects_for_ci.py": """import os


def url_to_local_path(url, *rest, **named):
    return os.environ["PICTURE"]
""",
}


def fetch(folder: Path) -> None:
    """Downloads what the tests need into a folder: `tests` and `packages`."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    version = metadata.version("transformers")
    source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"transformers=={version}"]
    subprocess.run([*pip, "download", *source, "-d", folder], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "packages", "parameterized"], check=True)
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    shutil.move(str(next(folder.glob("transformers-*/tests"))), folder / "tests")


def arrange(folder: Path) -> None:
    """Puts our files and the stand-ins beside the tests."""
    for name, text in STANDINS.items():
        file = folder / "tests" / name
        file.parent.mkdir(exist_ok=True)
        if not name.startswith(".."):
            (file.parent / "__init__.py").touch()
        file.write_text(text, encoding="utf-8")
    (folder / "tests" / "__init__.py").touch()
    shutil.copy(HERE / "cases.py", folder / "tests" / "test_cases.py")
    shutil.copy(HERE / "plumbing.py", folder / "tests" / "plumbing.py")
    from PIL import Image

    gradient = Image.linear_gradient("L")
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).resize((640, 480)).save(
        folder / "picture.png"
    )


def run(folder: Path, side: str, more: list[str]) -> tuple[dict[str, str], int]:
    """Runs the tests; returns the first line of each failure, and how many passed."""
    environment = {
        **os.environ,
        "SIDE": side,
        "PICTURE": str(folder / "picture.png"),
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(folder / "packages"))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short"]
    options = ["--junitxml", str(report), "--rootdir", str(folder), "-W", "ignore", *more]
    subprocess.run([*command, "tests/test_cases.py", *options], cwd=folder, env=environment, check=False)
    failures, passed = {}, 0
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{str(case.get('classname')).rpartition('.')[2]}.{case.get('name')}"
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:
            failures[name] = (bad[0].get("message") or "").strip().partition("\n")[0][:200]
        elif not any(part.tag == "skipped" for part in case):
            passed += 1
    return failures, passed


def main() -> int:
    """Runs and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("deit", "transformers"), default="deit")
    parser.add_argument("--folder", type=Path, help="keeps what is fetched here, and takes it from here the next time")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        if not (folder / "tests").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            fetch(folder)
        arrange(folder)
        failures, passed = run(folder, arguments.side, more)
    known = tomllib.loads((HERE / "known.toml").read_text(encoding="utf-8")) if arguments.side == "deit" else {}
    unknown = {name: text for name, text in failures.items() if name not in known}
    for name, text in sorted(unknown.items()):
        print(f"FAILED, not in known.toml: {name}: {text}")
    gone = [] if more else sorted(known.keys() - failures.keys())
    for name in gone:
        print(f"In known.toml, but did not fail: {name}")
    print(f"{arguments.side}: {passed} passed, {len(failures)} failed, {len(failures) - len(unknown)} of them known.")
    return 1 if unknown or gone else 0


if __name__ == "__main__":
    sys.exit(main())
