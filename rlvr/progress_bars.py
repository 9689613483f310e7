"""How progress bars look wherever something takes long."""

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn


def progress_columns() -> list[ProgressColumn]:
    """Fits 80 characters, the notes of training included."""
    return [
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
