"""Write the page of results from nbs/results.json, the record of one run of `make ablations`.

    python docs/results.py FOLDER
"""
import json
import sys
from pathlib import Path

from sashimi_wb.core.system import write_atomic
from sashimi_wb.show.charts import plot_bits
from sashimi_wb.show.html import figure_html
from sashimi_wb.studies.report import DRAWN
from sashimi_wb.studies.results import DETAILS, MAIN, NOTE, final_rows, rows_table

ROOT = Path(__file__).resolve().parents[1]


def figure(question: str, rows: list[dict]) -> str:
    """Final bits of every arm over whole files beside those of coders without a model, as HTML."""
    drawn = [{"arm": row["arm"], "bits": row["whole"], "baselines": {name: row[key] for key, name in DRAWN.items()}}
             for row in final_rows(rows)]
    axis = "bits per sample over whole files (fewer is better)"
    drawings = {name: plot_bits(drawn, x=axis, narrow=name == "narrow") for name in ("wide", "narrow")}
    return "".join(f'<div class="{name}">{figure_html(drawing, question).data}</div>'
                   for name, drawing in drawings.items())


def section(name: str, found: dict) -> str:
    """A question with its answer, figure, tables, and the sentences that limit it, as Markdown."""
    rows = found["rows"]
    tables = "\n\n".join(f"```{{raw}} html\n{rows_table(rows, [], ('arm', 'matched', *columns), caption).data}\n```"
                         for caption, columns in DETAILS.items())
    lines = "\n".join(f"- {line}" for line in found["sentences"])
    main = rows_table(final_rows(rows), [], MAIN).data
    return f"""({name})=
## {found["question"]}

**{found["answer"]}**

```{{raw}} html
{figure(found["question"], rows)}
{main}
```

{lines}

:::{{dropdown}} All figures
{tables}
:::

The experiment: [{name}](../../nbs/experiments/{name}.ipynb).
"""


def page(results: dict) -> str:
    """The whole page as Markdown."""
    questions = {k: v for k, v in results.items() if isinstance(v, dict) and "question" in v}
    made = (f"Preset `{results['preset']}`, {results['n_seeds']} seeds, revision "
            f"{results['provenance']['revision'][:7]}, on {results['machine']}, {results['minutes']:.0f} minutes.")
    return f"""# Results

> What `make ablations` found: four questions, asked of small models that train for seconds on the bundled audio.

An answer needs three runs that differ by more than their seeds do; otherwise it says so. {NOTE}
Your own run writes the same answers, with players and training curves, to `runs/report.html`.

{made}

""" + "\n".join(section(name, found) for name, found in questions.items())


if __name__ == "__main__":
    recorded = json.loads((ROOT / "nbs/results.json").read_text(encoding="utf-8"))
    write_atomic(Path(sys.argv[1]) / "index.md", page(recorded))
