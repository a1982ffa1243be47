"""Questions over two facts: a relation asked about the object of another one.

The object is named by a phrase about the subject ("the country where Lyon lies") that stands in the subject's place of
the second relation's templates ("The currency of the country where Lyon lies is the"). So whatever changes the first
fact changes the answer, and so does whatever changes the second one. Fitting uses phrases and templates that are for
fitting, evaluation those that are held out; templates that begin with the subject are not used, since a phrase begins
in lower case.
"""

from __future__ import annotations

from mechedit.data.atlas.tables import Atlas

__all__ = ["hop_templates", "implication_table", "paraphrase_table"]


def hop_templates(atlas: Atlas, first: str, second: str, *, held_out: bool = False) -> tuple[str, ...]:
    """Templates that ask `second` about the object of `first`.

    Args:
        atlas: the tables.
        first: name of the relation that leads from the subject to the object.
        second: name of the relation that is asked about that object; one of the first one's hops.
        held_out: the words for evaluation instead of those for fitting.

    Returns:
        Templates with `{}` for the subject of `first`.

    Raises:
        InputError: if there is no relation of one of these names.

    Example:
        >>> from mechedit.data import atlas
        >>> hop_templates(atlas.load(), "city_country", "currency")[1]
        'The currency of the country where {} lies is the'
    """
    leading, asked = atlas.relation(first), atlas.relation(second)
    phrases = leading.phrases_held_out if held_out else leading.phrases
    templates = asked.held_out if held_out else asked.templates
    inner = [template for template in templates if not template.startswith("{}")]
    return tuple(template.replace("{}", phrase) for phrase in phrases for template in inner)


def paraphrase_table(atlas: Atlas) -> dict[str, tuple[str, ...]]:
    """The templates for fitting, in the form that `mechedit.editors.steering.paraphrases` takes.

    Args:
        atlas: the tables.

    Returns:
        Name of a relation -> its templates for fitting.

    Example:
        >>> from mechedit.data import atlas
        >>> paraphrase_table(atlas.load())["capital"][1]
        'The capital city of {} is'
    """
    return {name: relation.templates for name, relation in atlas.relations.items()}


def implication_table(atlas: Atlas) -> dict[str, tuple[str, ...]]:
    """The questions that follow from a fact, for fitting, in the form that `implications` takes.

    Args:
        atlas: the tables.

    Returns:
        Name of a relation -> templates of its hops, all about the fact's own subject; only relations that have hops.

    Example:
        >>> from mechedit.data import atlas
        >>> sorted(implication_table(atlas.load()))
        ['author', 'birth_country', 'city_country', 'company_country', 'landmark_country', 'maker']
    """
    return {
        name: tuple(template for hop in relation.hops for template in hop_templates(atlas, name, hop))
        for name, relation in atlas.relations.items()
        if relation.hops
    }
