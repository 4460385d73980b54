"""From what the page shows to HTML: one template, every value escaped, nothing fetched."""

import base64
import hashlib
from importlib.resources import files

from markupsafe import Markup

from ds_moe_mtl.analysis.page.heat import LEVELS
from ds_moe_mtl.analysis.page.svg import SLOTS

_FOLDER = "templates"


def render(**values) -> str:
    """Return the page. Whatever is no Markup of our own charts is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ds_moe_mtl.analysis.page", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = style_sheet()
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template("page.html")
    return template.render(style=Markup(style), policy=policy, **values)


def style_sheet() -> str:
    """Return the page's CSS, the steps of the tables' colours included."""
    text = (files("ds_moe_mtl.analysis.page") / _FOLDER / "page.css").read_text(encoding="utf-8")
    slots = [f".s{slot}{{--c:var(--s{slot})}}" for slot in range(SLOTS)]
    steps = [
        f".{sign}{step}{{background:color-mix(in srgb,var(--{colour}) {100 * step // LEVELS}%,"
        "var(--paper))}"
        for sign, colour in (("q", "full"), ("n", "below"))
        for step in range(1, LEVELS + 1)
    ]
    return "\n".join([text, *slots, *steps])


def _digest(style: str) -> str:
    """Return the hash by which the page's policy knows its one style sheet."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
