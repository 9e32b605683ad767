"""What was chosen for the models of providers: changes of rows, within `ConnectedRows`' changes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, func, null, select, update

from halt.config.providers import ModelSettings
from halt.errors import RequestError
from halt.store.database import upsert
from halt.store.tables import model_settings, storable

MODELS_MAX = 10_000  # of one provider: those with settings or a position
ORDER_MAX = 5_000  # models of one provider in an order

_KEY = ["provider", "model"]


def save_settings(
    connection: Connection, provider: str, model: str, settings: ModelSettings
) -> None:
    """Save the settings of a model; its position stays. Raises RequestError beyond MODELS_MAX."""
    settings = msgspec.structs.replace(settings, label=storable(settings.label))
    values = {"provider": provider, "model": model, "settings": settings}
    statement = upsert(connection, model_settings).values(values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=_KEY, set_={"settings": settings})
    )
    _tidy(connection, provider)


def checked_order(models: Sequence[str]) -> list[str]:
    """The models, each once. Raises RequestError for more than ORDER_MAX."""
    names = list(dict.fromkeys(map(storable, models)))
    if len(names) > ORDER_MAX:
        raise RequestError(
            f"The order has {len(names):,} models: use at most {ORDER_MAX:,}.", field="models"
        )
    return names


def save_order(connection: Connection, provider: str, models: Sequence[str]) -> None:
    """Give these models the positions from 0, and the provider's other models none.

    Raises RequestError beyond MODELS_MAX.
    """
    table = model_settings
    connection.execute(
        update(table)
        .where(table.c.provider == provider, table.c.position.is_not(None))
        .values(position=null())
    )
    if models:
        statement = upsert(connection, table)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=_KEY, set_={"position": statement.excluded.position}
            ),
            [
                {
                    "provider": provider,
                    "model": model,
                    "settings": ModelSettings(),
                    "position": position,
                }
                for position, model in enumerate(models)
            ],
        )
    _tidy(connection, provider)


def _tidy(connection: Connection, provider: str) -> None:
    """Delete rows that say nothing. Raises RequestError if more than MODELS_MAX are left."""
    table = model_settings
    connection.execute(
        delete(table).where(
            table.c.provider == provider,
            table.c.position.is_(None),
            table.c.settings == ModelSettings(),
        )
    )
    count = select(func.count()).where(table.c.provider == provider)
    if (connection.scalar(count) or 0) > MODELS_MAX:
        raise RequestError(
            f"{MODELS_MAX:,} models of this provider have settings already. Reset some of them "
            "first.",
            field="model",
        )
