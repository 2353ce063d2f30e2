"""Tables of small costs: what profiling takes, and how long an import does."""

from __future__ import annotations

from _tables import MISSING, load, rows_to_markdown, times


def profile_cost_table() -> str:
    """What profiling costs, off and on: processor time."""
    document = load("profile_cost.json")
    if document is None:
        return MISSING
    header = ["an empty span, ns", "spans a step", "a step, µs", "off: share of a step", "run off, s", "run on, s"]
    row = [f"{document['span_off_ns']:.0f}", str(document["spans_a_step"]), f"{document['step_us']:.0f}"]
    row += [f"{document['off_share_of_a_step']:.2%}", f"{document['run_off_seconds']:.2f}"]
    row += [f"{document['run_on_seconds']:.2f}", times(document["on_over_off"])]
    note = f"\n{document['data']}, {document['steps']} steps in two stages, a machine shared with other work, "
    return rows_to_markdown([*header, "ratio"], [row]) + note + f"torch {document['torch']}.\n"


def import_time_table() -> str:
    """How long importing pymtg takes beyond torch: processor time in fresh processes."""
    document = load("import_time.json")
    if document is None:
        return MISSING
    rows = [[f"`{name}`", f"{seconds:.3f}"] for name, seconds in document["beyond_torch_seconds"].items()]
    about = f"Medians of {document['rounds']} processes; torch alone {document['torch_seconds']:.2f} s. "
    about += f"A machine shared with other work, torch {document['torch']}."
    return rows_to_markdown(["statement", "processor seconds beyond `import torch`"], rows) + f"\n{about}\n"
