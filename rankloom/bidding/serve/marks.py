"""Marks that prove a notice's bid id is ours, and the notice addresses that carry them."""

from __future__ import annotations

import hashlib
import hmac
import json


class Marks:
    """Makes and reads the ids of bids.

    An id is the bid, its account and its amount in hexadecimal, so that a bid which a power loss took can still be
    billed. The mark is a keyed hash of it.

    Args:
        secret: the key.
        base_url: where the exchange reaches this server.
    """

    def __init__(self, secret: bytes, base_url: str) -> None:
        self._mac = hashlib.blake2b(key=secret, digest_size=8)
        url = base_url.rstrip("/") + "/v1/notices/"
        text = json.dumps(url)[1:-1]
        tail = "&p=${AUCTION_PRICE}&c=${AUCTION_CURRENCY}&m=${AUCTION_MIN_TO_WIN}"
        self._urls = (
            f'"nurl":"{text}win?b=', f'{tail}","burl":"{text}bill?b=', f'{tail}","lurl":"{text}loss?b=',
            f'{tail}&r=${{AUCTION_LOSS}}"',
        )  # fmt: skip

    def links(self, token: str) -> str:
        """The members `nurl`, `burl` and `lurl` of a bid's JSON."""
        mac = self._mac.copy()
        mac.update(token.encode())
        proof = f"{token}&t={mac.hexdigest()}"
        one, two, three, four = self._urls
        return f"{one}{proof}{two}{proof}{three}{proof}{four}"

    def read(self, token: str, proof: str) -> tuple[int, int, int] | None:
        """(bid, account, amount) of an id that this server made, (0, 0, 0) of a test bid, None of any other text."""
        mac = self._mac.copy()
        mac.update(token.encode("utf-8", "replace"))
        if not hmac.compare_digest(mac.hexdigest().encode(), proof.encode("utf-8", "replace")):
            return None
        if token.startswith("t-"):
            return 0, 0, 0
        bid, account, amount = token.split("-")
        return int(bid, 16), int(account, 16), int(amount, 16)


def token_of(bid: int, account: int, amount: int) -> str:
    return f"{bid:x}-{account:x}-{amount:x}"


def trial_token(number: int) -> str:
    """The id of a bid that answers a test request; there is no money behind it."""
    return f"t-{number:x}"
