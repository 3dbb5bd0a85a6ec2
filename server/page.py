"""The playground at `/`: four files that `playground/` builds, which ask this server as any other client would.

They are served without the key: a browser cannot send one with the address that it opens, and they say nothing that the
package on the index does not. Whatever they show comes from the endpoints, which do want it; so the page asks for it.
"""

from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .errors import NotFoundError

FOLDER = Path(__file__).parent / "playground" / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/playground/app.js": ("app.js", "text/javascript"),
    "/playground/app.css": ("app.css", "text/css"),
    "/playground/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again: a server that was updated shows its own page
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

page = APIRouter(include_in_schema=False)


@page.get("/")
@page.get("/playground/{name}")
def file(request: Request) -> Response:
    """One of the files; 304 where the browser has it."""
    if request.url.path not in FILES:
        raise NotFoundError("The playground has no such file.")
    name, media_type = FILES[request.url.path]
    content = (FOLDER / name).read_bytes()
    headers = HEADERS | {"ETag": f'"{sha256(content).hexdigest()[:16]}"'}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
