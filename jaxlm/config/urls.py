"""Tell URLs from local paths, and show them without their secrets."""

import re

URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# Before the host: all of it at a web address, where it may be a token. Elsewhere a user's name
# may be part of the address (a container of Azure), and only a password is a secret.
USER_OF_WEB_ADDRESS = re.compile(r"\b(https?://)[^/\s'\"]*@", re.IGNORECASE)
PASSWORD = re.compile(r"\b([a-z][a-z0-9+.-]+://)[^/\s'\"@]*:[^/\s'\"]*@", re.IGNORECASE)
# Signed addresses have their signature there. Elsewhere a question mark is a wildcard.
QUERY_OF_WEB_ADDRESS = re.compile(r"\b(https?://[^?\s'\"]*)\?[^\s'\")]*", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Return whether a path names a file by a URL, such as s3://bucket/file or memory://file."""
    return URL.match(path) is not None


def url_scheme(url: str) -> str:
    """Return the scheme of a URL in lower case: s3 for s3://bucket."""
    match = URL.match(url)
    return match[1].lower() if match else ""


def hide_credentials(text: str) -> str:
    """Return a text without the users, passwords and signed queries of the URLs in it."""
    text = USER_OF_WEB_ADDRESS.sub(r"\1", text)
    text = PASSWORD.sub(r"\1", text)
    return QUERY_OF_WEB_ADDRESS.sub(r"\1", text)
