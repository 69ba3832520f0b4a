"""Run the notebooks again and commit what they put out; strict nbval compares with that.

    .venv/bin/python tests/renew_notebooks.py            every notebook that keeps its outputs
    .venv/bin/python tests/renew_notebooks.py 01 04      those whose names begin so

What is kept is made independent of the run: no times of execution, no state of widgets, no style
sheet (it changes with the page's), and of a chart only its words (its question and what was found).
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
STRIPPED = ("cost-report.ipynb",)  # a template for papermill: kept without outputs
STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)


def renew(path: Path) -> None:
    """Run the notebook from top to bottom and write it with the outputs worth keeping."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", resources=where).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        cell.outputs = [kept(output, count) for output in cell.outputs]
    for cell in notebook.cells:
        cell.metadata = {name: cell.metadata[name] for name in ("tags",) if name in cell.metadata}
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
    }
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def kept(output, count: int):
    """An output as it is committed."""
    if "data" not in output:
        return output
    if is_chart(output):
        output.data = {"text/plain": output.data["text/plain"]}
    elif "text/html" in output.data:
        output.data["text/html"] = STYLE.sub("<style></style>", output.data["text/html"])
    output.metadata = {}
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def is_chart(output) -> bool:
    """Whether it holds a drawing."""
    return any(mime.startswith("application/vnd.vega") for mime in output.data)


def main(asked: list[str]) -> None:
    """Renew the notebooks asked for; all that keep outputs without a word."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if path.name in STRIPPED or (asked and not path.name.startswith(tuple(asked))):
            continue
        renew(path)
        print(path.name, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
