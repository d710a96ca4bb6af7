"""The built-in page in a real Chromium. MILLRACE_SCREENSHOT names a file to keep a picture in."""
import os
import shutil
import time

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed (./test --full installs it)")
CHROMIUM = os.environ.get("MILLRACE_CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine (MILLRACE_CHROMIUM)")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def wait_until(page, expression, seconds=30):
    """Polls from outside: the page's policy forbids eval, which wait_for_function uses."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.02)


class Page:
    def __init__(self, browser, url, **context):
        self.errors, self.requests = [], []
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        wait_until(self.page, "document.getElementById('running').textContent !== '–'")


@pytest.fixture
def open_page(browser):
    pages = []

    def open_(url, **context):
        pages.append(Page(browser, url, **context))
        return pages[-1]

    yield open_
    for page in pages:
        page.context.close()


def wait_for_answer(page, count=1):
    wait_until(page, f"document.querySelectorAll('.message.assistant .meta span').length >= {count} && !document.querySelector('.writing')")


def test_loads_without_errors_or_other_hosts(server, open_page, model):
    opened = open_page(server.url)
    assert model in opened.page.title()
    assert opened.page.locator("#model").text_content() == model
    assert all(url.startswith(server.url) or url.startswith("data:") for url in opened.requests)
    assert opened.errors == []


def test_conversation_by_keyboard_alone(server, open_page):
    opened = open_page(server.url)
    page = opened.page
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.locator("#max_tokens").fill("24")
    page.locator("#prompt").focus()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("mill")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    assert page.locator(".message.user .body").text_content() == "Hello\nmill"
    assert page.locator(".message.assistant .body").text_content().strip()
    assert "tokens" in page.locator(".message.assistant .meta").text_content()
    assert page.locator("#ttft").text_content().endswith("ms")
    assert page.evaluate("document.activeElement.id") == "prompt", "the next message can be typed at once"
    if path := os.environ.get("MILLRACE_SCREENSHOT"):
        page.screenshot(path=path)
    # Every control is reached by Tab.
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert {"regenerate", "send", "new-chat", "toggle-settings", "temperature", "seed", "system"} <= seen
    assert opened.errors == []


def test_knobs_go_into_the_request(server, open_page):
    page = open_page(server.url).page
    values = {"temperature": "0.5", "top_p": "0.9", "top_k": "20", "min_p": "0.05", "max_tokens": "7", "seed": "42"}
    for knob, value in values.items():
        assert page.locator(f"label[for={knob}]").count() == 1
        page.locator(f"#{knob}").fill(value)
    page.locator("#system").fill("Be brief.")
    page.locator("#prompt").fill("Hi")
    with page.expect_request("**/v1/chat/completions") as request:
        page.keyboard.press("Enter")
    body = request.value.post_data_json
    assert {knob: body[knob] for knob in values} == {knob: float(value) for knob, value in values.items()}
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert body["stream"] is True
    wait_for_answer(page)
    page.reload()
    assert page.locator("#temperature").input_value() == "0.5", "settings are kept"


def test_regenerate_and_new_chat(server, open_page):
    page = open_page(server.url).page
    page.locator("#max_tokens").fill("5")
    page.locator("#prompt").fill("Hi")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    with page.expect_request("**/v1/chat/completions") as request:
        page.locator("#regenerate").click()
    assert [message["role"] for message in request.value.post_data_json["messages"]] == ["user"]
    wait_for_answer(page)
    assert page.locator(".message.assistant").count() == 1
    page.locator("#new-chat").click()
    assert page.locator(".message").count() == 0 and page.locator("#welcome").is_visible()


def test_stop_ends_the_answer_and_keeps_its_text(slow_server, open_page):
    running = slow_server(20, "--endless", "--kv-blocks", 200)
    page = open_page(running.url).page
    page.locator("#max_tokens").fill("3000")
    page.locator("#prompt").fill("Hi")
    page.keyboard.press("Enter")
    wait_until(page, "document.querySelector('.message.assistant .body').textContent.length > 20")
    assert float(page.locator("#speed").text_content()) > 0
    wait_until(page, "parseFloat(document.getElementById('kv').textContent) > 0")
    page.locator("#stop").click()
    wait_for_answer(page)
    assert "stopped" in page.locator(".message.assistant .meta").text_content()
    running.wait_until_idle(3)
    page.locator("#prompt").fill("More")
    page.keyboard.press("Enter")
    wait_until(page, "document.querySelectorAll('.message.assistant .body')[1]?.textContent.length > 5")
    page.keyboard.press("Escape")
    wait_until(page, "!document.querySelector('.writing')")
    running.wait_until_idle(3)


def test_errors_are_shown(server, open_page):
    page = open_page(server.url).page
    page.locator("#max_tokens").fill("1000000")
    page.locator("#prompt").fill("Hi")
    page.keyboard.press("Enter")
    page.locator("#error").wait_for(state="visible")
    assert "context" in page.locator("#error").text_content()
    page.locator("#max_tokens").fill("3")
    page.locator("#prompt").fill("Hi again")
    page.locator("#prompt").focus()
    page.keyboard.press("Enter")
    page.locator("#error").wait_for(state="hidden")
    wait_for_answer(page)


def test_markdown_is_drawn_and_never_becomes_html(server, open_page):
    opened = open_page(server.url)
    html = opened.page.evaluate(
        """async (text) => {
          const { renderMarkdown } = await import('./markdown.js');
          const root = document.createElement('div');
          root.append(...renderMarkdown(text));
          return root.innerHTML;
        }""",
        "# Title\n\nSome **bold**, *slanted*, `a < b` and [here](https://example.org).\n\n- one\n  - inner\n- two\n\n1. first\n2. second\n\n> said\n\n---\n"
        "```cpp\nint x = 1 < 2; **not bold**\n```\n\n<img src=x onerror=alert(1)> [bad](javascript:alert(1)) snake_case_name 2 * 3 * 4",
    )
    for wanted in ["<h3>Title</h3>", "<strong>bold</strong>", "<em>slanted</em>", "<code>a &lt; b</code>", 'href="https://example.org"', "<ul><li>one<ul><li>inner</li></ul></li><li>two</li></ul>",
                   "<ol start=\"1\"><li>first</li><li>second</li></ol>", "<blockquote><p>said</p></blockquote>", "<hr>", "int x = 1 &lt; 2; **not bold**",
                   "&lt;img src=x onerror=alert(1)&gt;", "snake_case_name 2 * 3 * 4"]:
        assert wanted in html, (wanted, html)
    assert "<img" not in html and "javascript:alert(1)\"" not in html
    deep = opened.page.evaluate("async () => (await import('./markdown.js')).renderMarkdown('> '.repeat(100000) + 'end').length")
    assert deep == 1, "quotes in quotes end somewhere: a model may write nothing else"
    assert opened.errors == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_follows_the_colour_scheme(server, open_page, scheme):
    page = open_page(server.url, color_scheme=scheme).page
    red = int(page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
    assert (red < 60) == (scheme == "dark")


def test_fits_a_phone(server, open_page):
    opened = open_page(server.url)
    opened.page.set_viewport_size({"width": 360, "height": 700})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.page.locator("#send").is_visible()
