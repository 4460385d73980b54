"""A split of a data set on the Hub, downloaded into the Hub's cache."""

from collections.abc import Iterable
from dataclasses import dataclass

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.tables import Columns, need_columns


@dataclass(frozen=True)
class HubSplit:
    """One split. origin: what to call it in messages. files: what its rows are kept in."""

    origin: str
    files: tuple[str, ...]
    rows: object  # a datasets.Dataset

    def columns(self, names: Iterable[str], as_names: str | None = None) -> Columns:
        """These columns, one value a row; class numbers of column `as_names` as their names.

        A list of class numbers (of tags, of several labels) becomes one of names.

        A class number of -1, the Hub's for "no label", becomes None. Raises UserError for a column
        that is not there.
        """
        names = list(names)
        need_columns(names, self.rows.column_names, self.origin)
        found = {name: list(self.rows[name]) for name in names}
        feature = self.rows.features.get(as_names)
        inside = getattr(getattr(feature, "feature", None), "names", None)
        if inside:
            found[as_names] = [values and [inside[n] for n in values] for values in found[as_names]]
        classes = getattr(feature, "names", None)
        if classes:
            found[as_names] = [None if n in (None, -1) else classes[n] for n in found[as_names]]
        return found


def hub_split(hub: tuple[str, str], split: str, task: str, otherwise: str) -> HubSplit:
    """Return a split of the data set `hub`: its name and its configuration ("": the only one).

    Raises UserError, one line, where it cannot be had. task, otherwise: whom the message is about,
    and what to do instead.
    """
    import datasets

    name, configuration = hub
    origin = f"{name} ({configuration}), {split}" if configuration else f"{name}, {split}"
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"task {task!r}: cannot load {origin} from the Hub ({reason}); {otherwise}"
        ) from None
    return HubSplit(origin, tuple(file["filename"] for file in rows.cache_files), rows)
