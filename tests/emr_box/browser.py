"""A person in front of JupyterHub: Chromium, driven by Playwright."""

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PATIENCE = 180  # seconds; a server starts while Spark has all cores
WIDTH, HEIGHT = 1000, 900  # pixels of the window
TALLEST = 12_000  # pixels of a picture; Chromium draws no more than 16,384
KERNEL_NAME = ".jp-Toolbar-kernelName"
# How tall the window would have to be to show the open notebook, from its top to its last cell.
ROOM_NEEDED = """() => {
  const all = document.querySelector(".jp-WindowedPanel-outer");
  if (!all) return 0;
  all.scrollTop = 0;
  const bottom = [...all.querySelectorAll(".jp-Cell")].at(-1).getBoundingClientRect().bottom;
  const below = window.innerHeight - all.getBoundingClientRect().bottom;
  return Math.ceil(bottom + below + 20);
}"""


class Person:
    """One person's browser. Use it in a `with` block.

    What has happened is read from the server's API, never from the page's text.

    Parameters
    ----------
    address : str
        The hub's, such as `https://127.0.0.1:9443`.
    user, password : str
    pictures : pathlib.Path
        Folder for screenshots.
    """

    def __init__(self, address: str, user: str, password: str, pictures: Path):
        self.user, self.password, self.pictures = user, password, pictures
        self._server = f"{address}/user/{user}"

    def __enter__(self) -> "Person":
        self._playwright = sync_playwright().start()
        try:
            browser = self._playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                # root has no sandbox, and a container a small /dev/shm
                args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
            )
            self.page = browser.new_page(
                ignore_https_errors=True,  # the cluster signs its certificate itself
                viewport={"width": WIDTH, "height": HEIGHT},
            )
            self.page.set_default_timeout(PATIENCE * 1000)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._playwright.stop()  # and the browser with it

    # --- the hub ---------------------------------------------------------------------------------

    def log_in(self, password: str = "") -> str:
        """Go to JupyterLab's address and log in; return the page's refusal, empty once in Lab."""
        page = self.page
        page.context.clear_cookies()  # of an earlier log-in
        page.goto(f"{self._server}/lab")
        page.fill("#username_input", self.user)
        page.fill("#password_input", password or self.password)
        page.click("#login_submit")
        page.wait_for_selector(".login_error, a#start, #jp-top-panel")
        if page.locator("a#start").count():
            page.click("a#start")  # "Launch Server"; a page shows its progress and leads on
            page.wait_for_selector("#jp-top-panel")
        refusal = page.locator(".login_error")
        return refusal.inner_text().strip() if refusal.count() else ""

    # --- notebooks, in the contents API ----------------------------------------------------------

    def read(self, path: str) -> dict:
        """Return a notebook as it was last saved."""
        return self._ask("get", f"contents/{path}")["content"]

    def write(self, path: str, notebook: dict) -> None:
        """Save a notebook that is not open, as an upload does."""
        self._ask("put", f"contents/{path}", {"type": "notebook", "content": notebook})

    def parameters_cell(self, path: str) -> int:
        """Return the position of a notebook's cell of parameters, for `type_into`."""
        (position,) = [
            position
            for position, cell in enumerate(self.read(path)["cells"])
            if "parameters" in cell["metadata"].get("tags", [])
        ]
        return position

    # --- a notebook, in the page -----------------------------------------------------------------

    def open(self, path: str, kernel: str) -> None:
        """Open a notebook of the user's folder and wait for its kernel; change it if necessary.

        `kernel` is the name on the page, such as `PySpark`.
        """
        page = self.page
        page.goto(f"{self._server}/lab/tree/{path}?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        choice = page.locator(".jp-Dialog:has(.jp-KernelSelector-body, select)")
        # A notebook without a known kernel opens the dialog by itself.
        self._wait(f"{path} to have a kernel", lambda: choice.count() or self._kernel(path))
        if not choice.count() and page.inner_text(KERNEL_NAME).strip() != kernel:
            page.click(KERNEL_NAME)
            choice.wait_for()
        if choice.count():
            choice.locator("select").select_option(label=kernel)
            choice.locator("button.jp-mod-accept").click()
        self._wait(
            f"{path} to be connected to {kernel}",
            lambda: (
                self._idle(path)
                and self._kernel(path)["connections"]
                and page.inner_text(KERNEL_NAME).strip() == kernel
            ),
        )
        if page.locator("#jp-left-stack").is_visible():
            page.keyboard.press("Control+b")  # the notebook in the whole window

    def type_into(self, cell: int, text: str) -> None:
        """Replace a cell's text in the open notebook; cells are counted from 0."""
        self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        # As if pasted: typed key by key, the editor would indent and close brackets by itself.
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Control+Home")  # or the cell stays scrolled to the end of a line

    def run_all(self, path: str, patience: float) -> dict:
        """Run all cells of the open notebook up to the first that fails; return it as saved.

        `patience` is in seconds, for all cells together.
        """
        self._menu("Edit", "editmenu:clear-all")  # counts and outputs of an earlier run
        self.save()
        self._menu("Run", "runmenu:run-all")
        self._wait(f"the cells of {path} to run", lambda: self._has_run(path), patience)
        return self.read(path)

    def save(self) -> None:
        """Save the open notebook, and wait until it is saved."""
        with self.page.expect_response(
            lambda response: (
                response.request.method == "PUT" and f"{self._server}/api/contents/" in response.url
            )
        ) as answer:
            self._menu("File", "docmanager:save")
        assert answer.value.ok, f"{answer.value.url}: {answer.value.status}"

    def shut_down(self, path: str) -> None:
        """Shut the kernel of the open notebook down, from the menu."""
        self._menu("Kernel", "kernelmenu:shutdown")
        self._wait(f"the kernel of {path} to end", lambda: not self._kernel(path))

    def take_picture(self, name: str) -> Path:
        """Take a picture of the window, tall enough for all cells of the open notebook."""
        page = self.page
        page.mouse.move(0, 0)  # a table row under the pointer would be coloured
        height = HEIGHT
        for _ in range(5):  # cells that come into view are drawn, and change in height
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.wait_for_timeout(1000)
            needed = min(max(page.evaluate(ROOM_NEEDED), HEIGHT), TALLEST)
            if needed == height:
                break
            height = needed
        target = self.pictures / f"{name}.png"
        seen = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
        # With a palette, text and diagrams look the same in a third of the bytes.
        seen.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        return target

    # --- what the server says --------------------------------------------------------------------

    def _kernel(self, path: str) -> dict | None:
        kernels = [one["kernel"] for one in self._ask("get", "sessions") if one["path"] == path]
        return kernels[0] if kernels else None

    def _idle(self, path: str) -> bool:
        kernel = self._kernel(path)
        return bool(kernel) and kernel["execution_state"] == "idle"

    def _has_run(self, path: str) -> bool:
        if not self._idle(path):
            return False
        self.save()  # a kernel is idle between two cells too: look at the cells
        cells = [cell for cell in self.read(path)["cells"] if cell["cell_type"] == "code"]
        failed = any(
            output["output_type"] == "error" for cell in cells for output in cell["outputs"]
        )
        return failed or all(cell["execution_count"] for cell in cells if cell["source"])

    def _ask(self, method: str, path: str, content: dict | None = None):
        cookies = self.page.context.cookies(f"{self._server}/")
        tokens = {
            cookie["path"]: cookie["value"] for cookie in cookies if cookie["name"] == "_xsrf"
        }
        answer = self.page.context.request.fetch(
            f"{self._server}/api/{path}",
            method=method,
            data=None if content is None else json.dumps(content),
            # The hub has another token: the longest path is the server's.
            headers={"X-XSRFToken": tokens[max(tokens, key=len)]},
        )
        assert answer.ok, f"{method} {path}: {answer.status} {answer.text()[:500]}"
        return answer.json()

    def _menu(self, menu: str, command: str) -> None:
        self.page.click(f'.lm-MenuBar-item:has-text("{menu}")')
        self.page.click(f'.lm-Menu-item[data-command="{command}"]')

    def _wait(self, what: str, done: Callable[[], object], patience: float = PATIENCE) -> None:
        end = time.monotonic() + patience
        while not done():
            if time.monotonic() > end:
                picture = self.take_picture("timed-out")
                raise TimeoutError(f"{self.user} waited {patience:.0f} s for {what}: see {picture}")
            self.page.wait_for_timeout(500)
