"""Replace e-mail addresses and public IP addresses by placeholders.

The placeholders are those of Dolma (Soldaini et al. 2024, arXiv 2402.00159): no text has them by
itself, so that a model which writes one can be told from a model that knows an address. As in
FineWeb (Penedo et al. 2024, arXiv 2406.17557) an IP address must be a public one.
"""

import ipaddress
import re

EMAIL, IP = "|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||"

# Every repetition is bounded, so that the time is linear in the length of the text.
EMAIL_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9_%+-])[A-Za-z0-9_%+-]{1,64}(?:\.[A-Za-z0-9_%+-]{1,64}){0,8}"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,63})(?![A-Za-z0-9-])"
)
FILE_ENDINGS = {"png", "jpg", "jpeg", "gif", "webp", "svg", "css", "js", "html"}  # logo@2x.png

# Four numbers behind "version" or in "Firefox/3.6.0.1" are no address, nor is a part of more.
IPV4_ADDRESS = re.compile(
    r"(?<![\w.])(?<![A-Za-z]/)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9])"
)
VERSION = re.compile(r"\b(?:version|ver|v|release|section|chapter)\.?\s{0,3}$", re.IGNORECASE)
LONGEST_VERSION = 14  # characters, with the one before
# Public addresses lie in 2000::/3.
IPV6_ADDRESS = re.compile(
    r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_])"
)


def remove_addresses(text: str) -> str:
    """Return a text with placeholders for e-mail addresses and public IP addresses."""
    if "@" in text:
        text = EMAIL_ADDRESS.sub(replace_email, text)
    if "." in text:
        text = IPV4_ADDRESS.sub(replace_ipv4, text)
    if ":" in text:
        text = IPV6_ADDRESS.sub(replace_ipv6, text)
    return text


def replace_email(match: re.Match[str]) -> str:
    """Return the placeholder, or the match where it ends like a file."""
    return match.group() if match.group(1).lower() in FILE_ENDINGS else EMAIL


def replace_ipv4(match: re.Match[str]) -> str:
    """Return the placeholder, or the match where it is no public address."""
    before = match.string[max(match.start() - LONGEST_VERSION, 0) : match.start()]
    return IP if is_public(match.group()) and not VERSION.search(before) else match.group()


def replace_ipv6(match: re.Match[str]) -> str:
    """Return the placeholder, or the match where it is no public address.

    A colon behind the address belongs to the sentence.
    """
    address = match.group()
    for end in ("", ":"):
        if address.endswith(end) and is_public(address.removesuffix(end)):
            return IP + end
    return address


def is_public(address: str) -> bool:
    """Return whether a string is a valid address that is reached from everywhere."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
