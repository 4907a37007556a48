"""What the transforms of a job take alone: `python transforms_alone.py FILE[:Class] FOLDER FIRST STEP`.

Transforms every `STEP`th file of a folder from the `FIRST` on, and prints the CPU seconds of the transforms; reading is
not counted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from etl_server.loading import load_class


def main() -> None:
    """Transform and throw away."""
    spec, folder, first, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    server = load_class(spec)()
    server.setup()
    spent = 0.0
    for file in sorted(folder.iterdir())[first::step]:
        data = file.read_bytes()
        began = time.process_time()
        server.transform(data, file.name, "")
        spent += time.process_time() - began
    print(spent)


if __name__ == "__main__":
    main()
