"""A report: tables and a picture on one page, which needs no other file, no script and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from markdown_it import MarkdownIt

from bench.tables.markdown import to_markdown
from bench.tables.table import Table

MOST_ROWS = 200  # of a table; its Markdown file has them all
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: #fff; color: #222;
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .75rem; }}
p {{ margin: .4rem 0; max-width: 60rem; color: #555; font-size: .875rem; }}
nav a {{ color: #0072b2; margin-right: 1.25rem; white-space: nowrap; }}
.wide {{ overflow-x: auto; margin-bottom: .75rem; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .7rem; text-align: left; vertical-align: top; }}
th {{ border-bottom: 2px solid #bbb; vertical-align: bottom; font-weight: 600; }}
td {{ border-bottom: 1px solid #eee; }}
td[style*="right"] {{ white-space: nowrap; }}
td:first-child, th:first-child {{ white-space: nowrap; background: #fff; }}
@media (min-width: 60rem) {{ td:first-child, th:first-child {{ position: sticky; left: 0; }} }}
tbody tr:hover td {{ background: #f4f8fb; }}
strong {{ color: #222; }}
figure {{ margin: 2rem 0; }}
figure svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<nav>{contents}</nav>
{parts}
</body>
</html>
"""

_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")  # the only HTML in our Markdown is <br>


def to_html(title: str, tables: Sequence[Table], pictures: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """Make one page of tables, each as its Markdown is, up to `MOST_ROWS` rows.

    pictures: SVG files, by the name of the table that each stands below. notes: what is to be said after the tables.
    """
    parts: list[str] = []
    for table in tables:
        parts.append(_section(table))
        if table.name in pictures:
            parts.append(_figure(table.name, pictures[table.name]))
    contents = "\n".join(f'<a href="#{table.name}">{escape(table.name)}</a>' for table in tables)
    parts += [f"<p><strong>Note:</strong> {escape(note)}</p>" for note in notes]
    return PAGE.format(title=escape(title), contents=contents, parts="\n".join(parts))


def _section(table: Table) -> str:
    html: str = _MARKDOWN.render(to_markdown(replace(table, rows=table.rows[:MOST_ROWS])))
    more = len(table.rows) - MOST_ROWS
    cut = f"<p>… and {more:,} more rows in {table.name}.md</p>\n" if more > 0 else ""
    return (
        html.replace("<h1>", f'<h2 id="{table.name}">')
        .replace("</h1>", "</h2>")
        .replace("<table>", '<div class="wide"><table>')
        .replace("</table>", f"</table></div>\n{cut}")
    )


def _figure(name: str, svg: str) -> str:
    """Take the drawing out of an SVG file, without the prolog that only a file has."""
    drawing = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    return f"<figure>\n{drawing}\n</figure>"
