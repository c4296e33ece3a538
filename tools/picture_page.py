"""Pictures of a report for the docs, taken with headless Chromium.

    python tools/picture_page.py PAGE.html FOLDER

PAGE.html ─▶ sections at a width, in a scheme ─▶ stacked or side by side ─▶ FOLDER/report-NAME.png

Needs Debian's package chromium, Playwright for Python, and Pillow.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = {
    "curve": (1280, "light", ("rate-distortion",)),
    "light": (1280, "light", ("headline",)),
    "dark": (1280, "dark", ("bits-by-tensor", "bits-by-depth")),
    "claims": (1280, "light", ("claims",)),
    "narrow": (400, "dark", ("gap", "function-residual", "bytes")),
}
COLOURS = 256  # of the palette that pictures are reduced to
NARROW = 640


def main() -> None:
    """Takes all pictures."""
    page, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, scheme, sections) in PICTURES.items():
            tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            tab.goto(page.as_uri())
            tab.wait_for_timeout(500)
            parts = [picture(tab, section) for section in sections]
            whole = joined(parts, beside=width < NARROW)
            whole = whole.quantize(COLOURS, kmeans=COLOURS, dither=Image.Dither.NONE)
            whole.save(folder / f"report-{name}.png", optimize=True)
        browser.close()


def picture(tab: Any, section: str) -> Image.Image:
    """One section."""
    return Image.open(io.BytesIO(tab.locator(f"#{section}").screenshot())).convert("RGB")


def joined(parts: Sequence[Image.Image], *, beside: bool) -> Image.Image:
    """Pictures below or beside each other, on the colour of the first one's corner."""
    widths, heights = [part.width for part in parts], [part.height for part in parts]
    size = (sum(widths), max(heights)) if beside else (max(widths), sum(heights))
    whole, at = Image.new("RGB", size, parts[0].getpixel((40, 12))), 0
    for part in parts:
        whole.paste(part, (at, 0) if beside else (0, at))
        at += part.width if beside else part.height
    return whole


if __name__ == "__main__":
    main()
