"""What a doomed process runs: the unsafe variants, and a line of JSON for each that it survives."""

from __future__ import annotations

import contextlib
import json
import sys

from utils.deep_learning.document.program import UNSAFE, Settings, run


def main() -> None:
    """Run all unsafe variants by the settings in the first argument, a JSON object."""
    with contextlib.suppress(ImportError):  # no core file for a crash that is meant to happen
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    settings = Settings(**json.loads(sys.argv[1]))
    for variant in UNSAFE:
        report = run(variant, settings, expendable=True)
        fields = "variant", "applied", "errors", "accuracy"
        print(json.dumps({name: getattr(report, name) for name in fields}), flush=True)


if __name__ == "__main__":
    main()
