"""How a model answers general prompts: how far from its parent, how long, whether it ends, repeats itself or declines."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from instructkit.evaluate.results import Conduct
from instructkit.models.generate import Answer, Parent, batches, divergence, laws

_GOOD = """
    able admirable admire amazing amused beautiful benefit best better brave bright brilliant calm capable careful caring
    charming cheerful clean clever comfortable confident delight delighted delightful easy elegant enjoy enjoyed excellent
    fair faithful fine fond fortunate free fresh friendly fun generous gentle gift glad gladly good gorgeous grateful great
    happily happy harmless healthy helpful honest hope hopeful impressive improve improved interesting joy joyful kind
    kindly kindness laugh like liked love loved lovely loyal lucky marvellous neat nice patient peace peaceful perfect
    pleasant pleased pleasure polite positive praise pretty proud reliable respect respected rich right safe satisfied
    sensible sincere skilled smart smile splendid strong succeed success superb sweet talented thank thanks true trust
    trusted useful valuable warm welcome well win wise wonderful worthy
"""
_BAD = """
    abuse afraid aggressive angry annoyed annoying anxious arrogant ashamed attack awful bad bitter blame boring broken
    brutal careless cheat clumsy cold complain corrupt coward crime criminal cruel cry damage danger dangerous dead deadly
    death defeat dirty disappointed disappointing disaster disgusting dishonest doubt dreadful dull dumb evil fail failed
    failure false fear filthy fool foolish foul fraud greedy guilty harm harmful hate hated helpless horrible hostile hurt
    idiot ignorant ill illegal incapable inferior insult insulting jealous kill lazy lie liar lonely lose loser loss mad
    mean mess miserable mistake nasty negative obviously offensive pain painful poor problem rotten rude ruin sad savage
    scared selfish shame sick silly sloppy steal stupid suffer suspicious terrible thief threat tragic trouble ugly
    unfair unfriendly unhappy unkind unpleasant useless violent vulgar weak wicked worried worse worst wrong
"""
GOOD_WORDS, BAD_WORDS = frozenset(_GOOD.split()), frozenset(_BAD.split())
NEGATIONS = frozenset({"not", "no", "never", "nor", "hardly", "without", "cannot"})
REACH = 3  # words behind a negation that it turns round
OPENING = 240  # characters in which an answer declines, if it does

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_HELP = (
    r"(?:help|assist|answer|provide|give|do|fulfil|fulfill|comply|share|support|create|write|discuss|tell|say|offer|"
    r"respond|continue|engage|participate|advise|comment|recommend that|make|generate|produce|talk|explain|recall|know)"
)
_UNABLE = r"(?:cannot|can not|can['’]?t|could not|couldn['’]t|will not|won['’]t|would rather not|must decline to|refuse to)"
_DECLINING = re.compile(
    rf"""
    \bI(?:\s+am|['’]m)?\s+(?:(?:really|very|so)\s+)?(?:sorry|afraid)\b[^.!?]*\b(?:I\s+{_UNABLE}|not\s+able|unable|don['’]t|do\s+not)
    | \bI\s+(?:simply\s+|just\s+)?{_UNABLE}\s+(?:\w+ly\s+)?{_HELP}\b
    | \bI(?:\s+am|['’]m)\s+(?:not\s+(?:able|allowed|permitted|willing|going)|unable)\s+to\b
    | \bI(?:\s+am|['’]m)\s+not\s+(?:comfortable|at\s+liberty)\b
    | \bI\s+(?:must|have\s+to|need\s+to|will\s+have\s+to)\s+(?:\w+ly\s+)?(?:decline|refuse)\b
    | \bI\s+(?:\w+ly\s+)?(?:decline|refuse)\b
    | \bas\s+an?\s+(?:AI|artificial\s+intelligence|language\s+model|assistant)\b[^.!?]*\b(?:cannot|can['’]t|not|unable)\b
    | \b(?:it\s+would\s+be|that\s+is|this\s+is)\s+(?:not\s+appropriate|inappropriate)\b
    | \bI\s+(?:really\s+|honestly\s+)?(?:do\s+not|don['’]t)\s+know\b
    | ^\W*(?:I\s+have\s+)?no\s+idea\b
    | \bask\s+(?:somebody|someone)\s+else\b
    | ^\W*no\s+comment\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def sentiment(text: str) -> float:
    """
    `(good - bad) / (good + bad)` of the words on two short lists, from -1 to 1; 0 where none of them stands.

    A negation turns round the listed words that follow it closely. It compares two answers to almost the same prompt; as a
    judgement of one text it is far too coarse.
    """
    good = bad = 0
    turned = 0
    for word in _WORD.findall(text.lower()):
        if word in NEGATIONS or word.endswith(("n't", "n’t")):
            turned = REACH
            continue
        if word in GOOD_WORDS or word in BAD_WORDS:
            if (word in GOOD_WORDS) != (turned > 0):
                good += 1
            else:
                bad += 1
        turned = max(0, turned - 1)
    return (good - bad) / (good + bad) if good + bad else 0.0


def declines(text: str) -> bool:
    """
    Whether an answer opens by giving nothing: it refuses, says that it is not able, or that it does not know.

    A list of phrases in English. It misses refusals in other words and languages, in both models alike.
    """
    return _DECLINING.search(text[:OPENING]) is not None


def repetition(tokens: Sequence[Hashable], n: int = 3) -> float:
    """
    Share of the n-grams of a sequence that stood in it before: `1 - distinct / all`, 0 where it is too short for two.

    Source: Welleck et al. 2019 (1908.04319), section 6, where it is called seq-rep-n.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def conduct(
    model: Any,
    answers: Sequence[Answer],
    *,
    parent: Parent | None,
    pad_id: int,
    refuses: Callable[[str], bool] = declines,
) -> Conduct:
    """
    Measure a model's sampled answers to general prompts.

    Args:
        answers: one to each prompt, sampled by the model at temperature 1.
        parent: a context manager factory within whose context the model is its parent; None for the parent itself, whose KL is 0.
        pad_id: token that fills shorter rows.
        refuses: whether an answer declines, by its words.
    """
    kl = [0.0] * len(answers) if parent is None else answer_kl(model, answers, parent, pad_id)
    return Conduct(
        kl=kl,
        length=[len(item.ids) for item in answers],
        ended=[item.finished for item in answers],
        repetition=[repetition(item.ids[: -1 if item.finished else None]) for item in answers],
        refusal=[refuses(item.text) for item in answers],
    )


def answer_kl(model: Any, answers: Sequence[Answer], parent: Parent, pad_id: int) -> list[float]:
    """
    KL of the model to its parent over each answer that it sampled, nats an answer.

        sum_t KL(pi(. | x, y_<t) || parent(. | x, y_<t)),  y sampled from pi

    Its mean over answers is the KL of the two laws of whole answers, as that of `log pi(y) - log parent(y)` is, with less
    variance: each position's KL is summed over the whole vocabulary instead of read off the token that was drawn (Rao-Blackwell;
    Amini et al. 2504.10637).

    Args:
        answers: sampled by the model at temperature 1.
        parent: a context manager factory within whose context the model is its parent.
    """
    found = [0.0] * len(answers)
    prompts, ids = [told.prompt_ids for told in answers], [told.ids for told in answers]
    for rows, batch in batches(model, prompts, ids, pad_id):
        law = laws(model, batch)
        with parent():
            before = laws(model, batch)
        kl = divergence(law, before).masked_fill(~batch["response_mask"], 0.0).sum(1)
        for row, value in zip(rows, kl.tolist(), strict=True):
            found[row] = value
    return found
