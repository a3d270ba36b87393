"""Opens a page of `helix plan --html` in headless Chromium, works its switches and points, and says what does not work.

    helix plan --model deepseek-r1 --hardware gb200-nvl72 -c 1000000 --html plan.html
    python3 bench/page.py plan.html

The browser gets a copy of the page with a listener for errors before everything and a visitor after it, and prints the
document that they leave. Chromium's DOM and nothing else says what happened: no driver is needed.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LISTEN = """<script>
window.errors = [];
window.addEventListener("error", event => errors.push(event.message || "a resource failed"), true);
window.addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
for (const level of ["error", "warn"]) console[level] = (...words) => errors.push(words.join(" "));
</script>"""

VISIT = """<script>
const seen = {};
const visit = () => {
  Object.assign(seen, { fronts: fronts.map(of => of.front.length), answers: report.answers.length });
  const circles = () => [...document.querySelectorAll("#chart circle")];
  const text = id => document.getElementById(id).textContent;
  const bars = () => [...document.querySelectorAll("#bars .bar")].map(bar => bar.getBoundingClientRect().width);
  seen.points = circles().length;
  seen.chosen = text("layout");
  seen.bars = bars().length;
  seen.widest = Math.max(...bars());
  const last = circles().at(-1);
  last.dispatchEvent(new Event("mouseenter"));
  seen.hovered = text("layout");
  last.dispatchEvent(new Event("mouseleave"));
  seen.left = text("layout");
  last.dispatchEvent(new Event("click"));
  seen.clicked = text("layout");
  seen.label = last.getAttribute("aria-label");
  seen.off = [];
  for (const box of document.querySelectorAll("#switches input")) {
    box.click();
    seen.off.push(circles().length);
    box.click();
  }
  seen.again = circles().length;
  seen.inside = circles().every(circle => circle.cx.baseVal.value >= 0 && circle.cx.baseVal.value <= 900
    && circle.cy.baseVal.value >= 0 && circle.cy.baseVal.value <= 480);
};
try { visit(); } catch (error) { window.errors.push(String(error)); }
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify({ ...seen, errors: window.errors });
document.body.append(result);
</script>"""


def visit(page, browser):
    """What the browser saw of the page's text, as a dictionary."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        text = page.replace("<head>", "<head>" + LISTEN, 1)
        before, after = text.rsplit("</body>", 1)
        copy.write_text(before + VISIT + "</body>" + after, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        done = subprocess.run(
            [browser, *flags, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    if not found:
        sys.exit("the browser left no document:\n" + done.stderr)
    return json.loads(html.unescape(found[1]))


def faults(seen):
    """What is wrong, in words."""
    if seen["errors"]:
        return seen["errors"]
    points, fronts = sum(seen["fronts"]), seen["fronts"]
    checks = {
        f"{seen['points']} points are drawn of {points}": seen["points"] == seen["again"] == points > 0,
        "a point is outside the chart": seen["inside"],
        "the chosen point has no bars": seen["bars"] > 3 and seen["widest"] > 100,
        "a point under the pointer is not shown": seen["hovered"] == seen["label"],
        "the chosen point does not come back": seen["left"] == seen["chosen"] != "",
        "a click does not keep a point": seen["clicked"] == seen["label"],
        f"switches leave {seen['off']} points": seen["off"] == [points - front for front in fronts] + [points],
        "no question is answered": seen["answers"] > 0,
    }
    return [what for what, holds in checks.items() if not holds]


def main():
    """Exit status 1 where something does not work."""
    parser = argparse.ArgumentParser(description="Checks a page of helix plan --html in headless Chromium.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    if not arguments.browser:
        sys.exit("no chromium and no google-chrome on the path: give --browser")
    seen = visit(arguments.page.read_text(encoding="utf-8"), arguments.browser)
    wrong = faults(seen)
    for what in wrong:
        print(f"{arguments.page}: {what}")
    if wrong:
        sys.exit(1)
    print(f"{arguments.page}: {seen['points']} points of {len(seen['fronts'])} strategies, no error")


if __name__ == "__main__":
    main()
