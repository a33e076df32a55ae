"""The options that give the price of an hour."""

from collections.abc import Callable
from typing import Any

import click

from pipeline.price import Price


def price_options(help_: str) -> Callable[[Any], Any]:
    """Return a decorator that adds --price-per-hour and --currency, for `asked_price`."""

    def add(command: Any) -> Any:
        currency = click.option("--currency", metavar="WORD", help="Of the price.  [default: USD]")
        per_hour = click.option("--price-per-hour", type=float, metavar="NUMBER", help=help_)
        return per_hour(currency(command))

    return add


def asked_price(per_hour: float | None, currency: str | None) -> Price | None:
    """Return the price that a command was given, or None; raises click.UsageError."""
    if per_hour is None:
        if currency is not None:
            raise click.UsageError("--currency is of a price: give --price-per-hour too")
        return None
    try:
        return Price(per_hour) if currency is None else Price(per_hour, currency)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
