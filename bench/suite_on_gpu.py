"""Every kernel of the test suite on a GPU: right by the reference, twice the same bits.

Usage: python bench/suite_on_gpu.py [RESULT.json] [--library torch|cupy] [--few]

`--few` takes each kernel's first two shapes (for compute-sanitizer).
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.first_light import check_case  # noqa: E402
from tessera.runtime.bench_machine import facts as machine  # noqa: E402
from tests.suite import SUITE  # noqa: E402


def main():
    library = sys.argv[sys.argv.index("--library") + 1] if "--library" in sys.argv else "torch"
    path = next((a for a in sys.argv[1:] if a.endswith(".json")), None)
    seen, results = {}, []
    for name, dims in SUITE:
        seen[name] = seen.get(name, 0) + 1
        if "--few" not in sys.argv or seen[name] <= 2:
            check_case(name, dims, library, results)
    wrong = [row for row in results if not row["ok"]]
    facts = machine()
    print(json.dumps(facts))
    print(f"{len(results) - len(wrong)} right, {len(wrong)} wrong, {len(seen)} kernels")
    if path:
        Path(path).write_text(json.dumps({"machine": facts, "checks": results}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
