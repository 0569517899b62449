"""Starts the program vlm with the libtorch of the installed torch package."""

import importlib.util
import os
import sys
from pathlib import Path


def main():
    package = Path(__file__).resolve().parent
    # The program looks for libtorch in the torch package beside this one.
    if not (package.parent / "torch" / "lib" / "libtorch_cpu.so").exists():
        torch = importlib.util.find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            sys.exit("error: vlm needs the package torch: pip install torch==TORCH_VERSION")
        folders = [str(Path(torch.submodule_search_locations[0]) / "lib")]
        folders += filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
    program = package / "bin" / "vlm"
    os.execv(program, ["vlm", *sys.argv[1:]])


if __name__ == "__main__":
    main()
