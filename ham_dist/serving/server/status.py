"""The status page: a static file that reads /status.json."""

import base64
import functools
import hashlib
import re
import time
from importlib import resources
from typing import Any

from ham_dist import __version__
from ham_dist.serving.server.service import Service
from ham_dist.serving.server.versions import versions_in

_STARTED = time.time()


@functools.cache
def page() -> tuple[bytes, dict[str, str]]:
    """Returns the page and its headers; the browser runs the page's own script and no other."""
    text = resources.files("ham_dist.serving.server").joinpath("status.html").read_text(encoding="utf-8")
    found = re.search("<script>(.*?)</script>", text, re.DOTALL)
    assert found is not None, "the page has one script"
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return text.encode(), {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": f"default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
    }


def status_of(service: Service) -> dict[str, Any]:
    """Returns the content of /status.json."""
    service.tick()
    model = service.model
    manifest = model.scorer.bundle.manifest
    encoder = model.scorer.encoder
    failure = service.swapper.failure
    return {
        "program": f"ham_dist {__version__}",
        "name": service.options.model,
        "version": model.version,
        "versions": versions_in(service.options.bundle),
        "failed": None if failure is None else {"version": failure[0], "reason": failure[1]},
        "model": "" if manifest.model is None else manifest.model.name,
        "precision": manifest.precision,
        "runtime": f"{model.scorer.runtime.name} ({model.scorer.runtime.reason})",
        "table_bytes": manifest.table_bytes,
        "columns": [] if encoder is None else list(encoder.kinds),
        "fields": [
            {"name": field.name, "rows": field.num_embeddings, "columns": field.embedding_dim}
            for field in manifest.fields
        ],
        "draining": service.draining,
        "time": time.time(),
        "started": _STARTED,
        "metrics": service.metrics.summary(),
    }
