"""Pages and cards from the package's own templates."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Fill in `template`, a path inside the package (`bench/page.html.jinja`).

    What is put into HTML is text: markup only where the caller made it so (`markupsafe.Markup`).
    """
    environment = Environment(
        loader=PackageLoader("perceiver_vl", ""),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
