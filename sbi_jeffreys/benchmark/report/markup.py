"""One table, written as Markdown, LaTeX and HTML; text of the user is escaped in each."""

import html
import re
from dataclasses import dataclass

__all__ = ["Cell", "Table", "escape_latex", "escape_markdown"]

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "‖": r"$\|$",
    "θ": r"$\theta$",
    "†": r"$\dagger$",
    "\n": " ",
}


def escape_latex(text: str) -> str:
    r"""Escape what LaTeX would read as a command.

    >>> escape_latex("a_b & 5 %")
    'a\\_b \\& 5 \\%'
    """
    return "".join(LATEX.get(c, c) for c in text)


def escape_markdown(text: str) -> str:
    r"""Escape what Markdown would read as markup, in a cell of a table.

    >>> escape_markdown("<b>|x_1*")
    '&lt;b&gt;\\|x\\_1\\*'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", " ".join(text.splitlines()))


@dataclass(frozen=True)
class Cell:
    """Text of one cell, and how it is to stand out."""

    text: str
    bold: bool = False
    tone: str = ""
    """Class in HTML; the report's style knows "better" and "worse"."""


@dataclass(frozen=True)
class Table:
    """A table: the first column names the row, the others hold numbers or words."""

    name: str
    """File name without suffix, and anchor in the page."""
    title: str
    """What is in it, in a line."""
    header: tuple[str, ...]
    """Names of the columns."""
    rows: list[list[Cell]]
    """Cells, as many in each row as there are columns."""
    note: str = ""
    """How it is to be read."""
    numeric: bool = True
    """Whether all columns but the first are aligned to the right."""

    def to_markdown(self) -> str:
        """Write as a Markdown table under a line with the title."""
        rule = ["---", *["---:" if self.numeric else "---"] * (len(self.header) - 1)]
        lines = [[escape_markdown(name) for name in self.header], rule]
        for row in self.rows:
            texts = [escape_markdown(cell.text) for cell in row]
            lines.append(
                [f"**{t}**" if cell.bold else t for t, cell in zip(texts, row, strict=True)]
            )
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        note = f"\n{escape_markdown(self.note)}\n" if self.note else ""
        return f"{escape_markdown(self.title)}\n\n{body}\n{note}"

    def to_latex(self) -> str:
        """Write as a floating table; the document needs the package booktabs."""
        columns = "l" + ("r" if self.numeric else "l") * (len(self.header) - 1)
        lines = [" & ".join(map(escape_latex, self.header))]
        for row in self.rows:
            texts = [escape_latex(cell.text) for cell in row]
            lines.append(
                " & ".join(
                    rf"\textbf{{{t}}}" if cell.bold else t
                    for t, cell in zip(texts, row, strict=True)
                )
            )
        head, *body = [line + r" \\" for line in lines]
        caption = escape_latex(f"{self.title}. {self.note}".strip())
        return "\n".join(
            [
                "% needs \\usepackage{booktabs}",
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def to_html(self) -> str:
        """Write as an HTML table with a caption."""
        kind = "numeric" if self.numeric else "words"
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.header)
        body = "\n".join(
            "<tr>"
            + "".join(
                _html_cell(cell, "th scope='row'" if i == 0 else "td") for i, cell in enumerate(row)
            )
            + "</tr>"
            for row in self.rows
        )
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        title = html.escape(self.title)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
            f'<table id="{self.name}" class="{kind}"><caption>{title}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{note}"
        )


def _html_cell(cell: Cell, tag: str) -> str:
    text = html.escape(cell.text)
    inner = f"<strong>{text}</strong>" if cell.bold else text
    tone = f' class="{html.escape(cell.tone)}"' if cell.tone else ""
    return f"<{tag}{tone}>{inner}</{tag.split()[0]}>"
