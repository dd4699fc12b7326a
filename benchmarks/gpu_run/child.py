"""The process of one step: `python -m benchmarks.gpu_run.child MODULE:FUNCTION FINDINGS CONTEXT`."""

import sys
import traceback
from pathlib import Path
from pkgutil import resolve_name

from benchmarks.gpu_run.findings import Finding
from benchmarks.gpu_run.processes import StepContext


def main(function: str, lines: str, context: str) -> None:
    """Call a step's function with its context, and append each finding to the file `lines` as it comes."""
    try:
        for finding in resolve_name(function)(StepContext.from_json(context)):
            print(f"{finding.state}: {finding.subject} {finding.text} {dict(finding.figures)}", flush=True)
            finding.append(Path(lines))
    except Exception as error:  # libraries' errors share no base class
        traceback.print_exc()
        Finding.failure("the step itself", error).append(Path(lines))
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
