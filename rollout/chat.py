"""Chat templates per mode: how a prompt is put to the policy, and how its text is taken apart.

A mode that reasons ends its prompt with an open think tag, so the sampled text has only the
closing one; a mode that answers at once ends it with an empty think block. Where the chat template
has endings of its own for the two, they stay as they are, because the model was taught with them.
A mode that leaves the choice to the policy ends it where these two part, so that whatever is chosen
is followed by the very tokens that follow the prompt of the one or the other.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.rollout import ModeConfig, Thinking
from rl.config.run import Config
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.names import shortened
from rl.loop.stages import ChoiceTokens, Prompt
from rl.run.files import read_json
from rollout.prompts.stream import PromptStream

SWITCHES = ("enable_thinking", "thinking")
"""The variables by which chat templates are told whether to reason: Qwen3's, and DeepSeek's."""
KNOWN_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<reasoning>", "</reasoning>"),
    ("<|channel>thought", "<channel|>"),
    ("<|think|>", "<|/think|>"),
)
"""Tags that models have around their reasoning, in their templates or in what they write."""
NO_VARIABLES: Mapping[str, Any] = {}
SAMPLE = Prompt("sample", ({"role": "user", "content": "2+2?"},), "4")
ANSWERED = replace(SAMPLE, messages=(*SAMPLE.messages, {"role": "assistant", "content": "Four."}))
DAYS = (datetime(2001, 2, 3), datetime(2002, 3, 4))
SHOWN_IDS = 5


class UnaskablePrompt(ValueError):
    """One prompt that the policy cannot be asked, while others can."""


class ChatTemplate:
    def __init__(self, path: str, tags: ThinkTags = THINK_TAGS) -> None:
        """Load the tokenizer of a model directory; tags: around the model's reasoning.

        Raises ValueError if there is no tokenizer, chat template or end of sequence to use.
        """
        self._path = path
        self._tags = tags
        config = read_json(Path(path) / "config.json")
        self._model_type: str = config.get("model_type", "")
        self._family = vision_family(self._model_type)
        self.shows_media = self._family is not None
        self._tokenizer: Any = _open_tokenizer(path)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {path} has no chat template; take an instruction-tuned model or "
                "put a chat_template.jinja into its directory, with the text that a "
                "chat_template.json has as its chat_template"
            )
        self.end_tokens = stored_end_tokens(Path(path)) | {self._tokenizer.eos_token_id} - {None}
        rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        vocabulary = self._tokenizer.get_vocab() if rows else {}
        self._without_embedding = {n: token for token, n in vocabulary.items() if n >= rows}
        self._not_text: set[str] = set(self._without_embedding.values())
        """What a prompt's text must not write, though some of it may stand for a medium."""
        if self._family is not None:
            self._not_text |= {*self._family.markers.values(), *self._family.reserved}
        opening, closing = re.escape(tags.open), re.escape(tags.close)
        self._opened = re.compile(rf"{opening}\s*\Z")
        self._closed = re.compile(rf"(?:{opening}\s*)?{closing}\s*\Z")
        self._either_tag = re.compile(f"{opening}|{closing}")
        self._choices: dict[str, ChoiceTokens] = {}
        # Found out by asking: a template may name a variable and do nothing with it.
        self.switch: str | None = None
        try:
            for name in SWITCHES:
                if self._apply(SAMPLE, {name: True}) != self._apply(SAMPLE, {name: False}):
                    self.switch = name
                    break
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template of {path} cannot be used: {error}") from error

    def check_policy(self, modes: Mapping[str, ModeConfig]) -> list[str]:
        """What a person should know of how a policy with these modes is asked.

        Raises ValueError for a policy that cannot be asked, or would never end a response.
        """
        if not self.end_tokens:
            raise ValueError(
                f"{self._path} names no end of sequence, so no response would end by itself; set "
                "eos_token in its tokenizer_config.json, or eos_token_id in its config.json"
            )
        if all(self._tokenizer.convert_ids_to_tokens(end) is None for end in self.end_tokens):
            raise ValueError(
                f"{self._path} ends a response with the token {min(self.end_tokens)}, which its "
                "tokenizer does not have; set eos_token_id in its config.json and "
                "generation_config.json to one that it has"
            )
        # Gemma 3 reads text alone at its smallest size, and has the tokenizer of its siblings: it
        # has no embedding for the placeholder of an image, which only a prompt could write.
        used = {
            number: token
            for number, token in self._without_embedding.items()
            if not re.search("image|audio|video", token)
        }
        if used:
            number, token = min(used.items())
            raise ValueError(
                f"the tokenizer of {self._path} has {len(used)} tokens that the model has no "
                f"embedding for, such as {token!r} with the id {number}; call "
                "resize_token_embeddings(len(tokenizer)) and save the model, or remove the tokens"
            )
        source, rendered = self._tokenizer.get_chat_template(), {}
        for name, mode in modes.items():
            key, variables = f"modes.{name}.chat_template_kwargs", mode.chat_template_kwargs
            # The template would ignore it in silence, for the whole run.
            if unread := [v for v in variables if not re.search(rf"\b{re.escape(v)}\b", source)]:
                raise ValueError(
                    f"{key} sets {', '.join(unread)}, which the chat template of {self._path} "
                    "never reads; write the names that stand in the template"
                )
            if self.switch and variables.get(self.switch, mode.thinking) != mode.thinking:
                raise ValueError(
                    f"{key}.{self.switch} is {variables[self.switch]} and modes.{name}.thinking is "
                    f"{mode.thinking}; leave the former out, it follows the latter"
                )
            if mode.thinking == "auto":
                self.choice_tokens(variables)
                continue
            # First as a prompt, which says what the template refuses.
            self._render(SAMPLE, mode.thinking, variables)
            text = rendered[name] = self._apply(SAMPLE, self._variables(mode.thinking, variables))
            if SAMPLE.messages[0]["content"] not in text:
                raise ValueError(
                    f"the chat template of {self._path} does not write the question that it is "
                    f"given, but {text[-40:]!r}; take the chat_template.jinja of the model that "
                    "it was made from"
                )
            if mode.thinking and self._closed.search(text):
                raise ValueError(
                    f"the chat template of {self._path} ends a prompt of mode {name}, which "
                    f"reasons, with {text[-40:]!r}; set the variable that makes it reason in {key}"
                )
        return self._remarks(modes, rendered)

    def _remarks(self, modes: Mapping[str, ModeConfig], rendered: Mapping[str, str]) -> list[str]:
        """What a person should know of the template. rendered: SAMPLE in each mode."""
        source, said, tags = self._tokenizer.get_chat_template(), [], self._tags
        reasoning = {text for name, text in rendered.items() if modes[name].thinking}
        if any(t in reasoning for name, t in rendered.items() if not modes[name].thinking):
            said.append(
                f"the chat template of {self._path} has no switch for reasoning, so both kinds of "
                f"modes share it: a mode that reasons opens {tags.open} at the end of the prompt, "
                "and one that answers at once closes it there. A model that never saw these tags "
                "has to learn them; where the template takes another variable, set "
                "modes.*.chat_template_kwargs"
            )
        others = [each for each in KNOWN_TAGS if each[0] in source]
        if others and tags.open not in source:
            said.append(
                f"the chat template of {self._path} writes {others[0][0]}, and prompts are given "
                f"{tags.open}; for its own tags write policy.think_tags: "
                f'{{open: "{others[0][0]}", close: "{others[0][1]}"}} into the recipe'
            )
        told = (self._variables(on, NO_VARIABLES) for on in (True, False))
        ends = [self._apply(SAMPLE, each).rpartition("2+2?")[2] for each in told]
        if not others and ends[0] != ends[1] and not self._either_tag.search("".join(ends)):
            long, short = (shortened(end, 100) for end in ends)
            said.append(
                f"the chat template of {self._path} ends a prompt with {long!r} for a mode that "
                f"reasons and {short!r} for one that does not, and {tags.open} is put behind; if "
                "it has tags of its own there, set policy.think_tags"
            )
        plain, closed = self._apply(SAMPLE, {}), {"add_generation_prompt": False}
        if plain == self._apply(SAMPLE, closed):
            # Templates in which the user's turn has an end may need no words before an answer.
            begun = self._apply(ANSWERED, closed).partition("Four.")[0].rstrip()
            if begun != plain.rstrip():
                said.append(
                    f"the chat template of {self._path} takes no notice of add_generation_prompt, "
                    f"so prompts lack {begun.removeprefix(plain.rstrip())!r}, with which it begins "
                    "an answer; put a chat_template.jinja that writes it into the directory"
                )
        # A variable of this name hides the clock that every template is given.
        variables = next(iter(modes.values())).chat_template_kwargs
        days = [self._apply(SAMPLE, {"strftime_now": day.strftime, **variables}) for day in DAYS]
        if days[0] != days[1]:
            said.append(
                f"the chat template of {self._path} writes the current day into every prompt, so "
                "a run that goes on another day asks other prompts; set the day by "
                "modes.*.chat_template_kwargs where the template takes it (date_string of Llama), "
                "or put a chat_template.jinja without it into the model's directory"
            )
        return said

    def choice_tokens(self, variables: Mapping[str, Any] = NO_VARIABLES) -> ChoiceTokens:
        """What follows the prompts of a mode that chooses; the same behind every prompt.

        Raises ValueError for a policy that cannot be asked to choose.
        """
        key = repr(sorted(variables.items()))
        if key not in self._choices:
            _, self._choices[key] = self._parted(SAMPLE, variables)
        return self._choices[key]

    def _parted(
        self, prompt: Prompt, variables: Mapping[str, Any]
    ) -> tuple[tuple[int, ...], ChoiceTokens]:
        """What a prompt begins with in both ways to answer, and what each goes on with."""
        long, short = (self.prompt_token_ids(prompt, on, variables) for on in (True, False))
        alike = takewhile(lambda two: two[0] == two[1], zip(long, short, strict=False))
        count = len([*alike])
        tokens = ChoiceTokens(long[count:], short[count:])
        ends = [self.raw_text(tail) for tail in (tokens.long, tokens.short)]
        if not tokens.long or not tokens.short:
            # It would be one prompt for two modes: whoever learns not to choose reasoning there
            # also learns to break it off where it was asked for.
            raise UnaskablePrompt(
                f"a policy cannot be asked to choose where one prompt begins with the other: "
                f"{self._path} puts {ends[0]!r} behind what both have when it reasons, and "
                f"{ends[1]!r} when it answers at once; both must go on, with different tokens"
            )
        tags = self._tags
        allowed = (tags.open, tags.open + tags.close)
        for end, whole in zip(ends, allowed, strict=True):
            if not whole.endswith("".join(end.split())):
                raise UnaskablePrompt(
                    f"a policy cannot be asked to choose where its prompts differ before "
                    f"{tags.open}: {self._path} puts {shortened(end, 200)!r} behind what both "
                    "begin with; set chat_template_kwargs so that they are equal up to there"
                )
        return long[:count], tokens

    def prompt_token_ids(
        self, prompt: Prompt, thinking: Thinking, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> tuple[int, ...]:
        """Return the prompt's tokens up to where sampling starts; ends as the module says.

        variables: of the chat template, beside the switch. Each medium is one marker of its family.
        Raises ValueError if the template refuses the messages, and UnaskablePrompt for markers that
        do not match the prompt's media and for words that stand for something else in this policy.
        """
        if thinking == "auto":
            shared, tokens = self._parted(prompt, variables)
            if tokens != self.choice_tokens(variables):
                raise UnaskablePrompt(
                    f"prompt {prompt.id} goes on with other tokens than others do where the policy "
                    f"chooses, {tokens} and not {self.choice_tokens(variables)}; remove it"
                )
            return shared
        text = self._render(prompt, thinking, variables)
        if self._family is None:
            ids = self.token_ids(text)
            if unknown := [i for i in ids if i in self._without_embedding]:
                raise UnaskablePrompt(
                    f"prompt {prompt.id} writes {self._without_embedding[unknown[0]]}, for which "
                    f"{self._path} has no embedding; remove it from the text"
                )
            return ids
        pieces = self._family.pieces(text)
        # The text comes from data, and one that writes a marker would claim a picture that is not
        # there, or shift all others by one.
        kind_of = {marker: kind for kind, marker in self._family.markers.items()}
        written = [kind_of[marker] for marker in pieces[1::2]]
        if written != (shown := [medium.kind for medium in prompt.media]):
            raise UnaskablePrompt(
                f"prompt {prompt.id} as the chat template writes it has markers for {written}, and "
                f"its media are {shown}; its messages need one image or video part for each, and "
                f"no text of theirs may write {' or '.join(kind_of)}"
            )
        if taken := [t for t in self._family.reserved if any(t in text for text in pieces[::2])]:
            raise UnaskablePrompt(
                f"the text of prompt {prompt.id} must not write {', '.join(taken)}, which "
                f"{self._path} takes for parts of an image; escape or remove it"
            )
        return tuple(chain.from_iterable(map(self.token_ids, pieces)))

    @property
    def unsampled(self) -> tuple[int, ...]:
        """Token ids that no engine may sample: those that stand for media."""
        return unsampled_token_ids(self._model_type, self._tokenizer.get_vocab())

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone, without any that a model puts around it."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def response_token_ids(
        self, text: str, is_ended: bool, end_token: int | None = None
    ) -> tuple[int, ...]:
        """Return a response's text as tokens, with the end of sequence where it was sampled.

        They may be others than those that were sampled, of the same text. end_token: the end that
        was sampled; None where that is not known, and it is then the tokenizer's own.
        """
        if not is_ended:
            return self.token_ids(text)
        ends = (end_token, self._tokenizer.eos_token_id, *sorted(self.end_tokens))
        return (*self.token_ids(text), next(end for end in ends if end is not None))

    def length_above(
        self,
        prompt: Prompt,
        thinking: Thinking,
        limit: int,
        variables: Mapping[str, Any] = NO_VARIABLES,
    ) -> int | None:
        """Return the prompt's length in tokens where that is more than `limit`, else None.

        Quick for most prompts: a text has no more tokens than UTF-8 bytes, so one whose bytes
        fit need not be tokenised. Media count as their markers. Raises what `prompt_token_ids`
        raises.
        """
        text = self._render(prompt, bool(thinking), variables)
        fits = not prompt.media and len(text.encode()) <= limit
        if fits and not any(word in text for word in self._not_text):
            if thinking != "auto":
                return None
            # A template may look at the messages, and end this prompt as it ends no other.
            choice = self.choice_tokens(variables)
            reasons, answers = (self.raw_text(end) for end in (choice.long, choice.short))
            other = self._render(prompt, False, variables)
            if text.endswith(reasons) and text.removesuffix(reasons) + answers == other:
                return None
        length = len(self.prompt_token_ids(prompt, thinking, variables))
        return length if length > limit else None

    def text(self, token_ids: Sequence[int]) -> str:
        """Return sampled tokens as text: special tokens kept, a final end-of-sequence dropped."""
        # Kept, because a policy that writes special tokens must be seen to write them: a reward
        # that never sees them cannot punish them.
        ids = [int(token) for token in token_ids]
        if ids and ids[-1] in self.end_tokens:
            ids.pop()
        return self.raw_text(ids)

    def raw_text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, every one of them kept."""
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _variables(self, thinking: bool, others: Mapping[str, Any]) -> dict[str, Any]:
        """What the template is told in a mode."""
        # Also where it does nothing with a single question: other messages may make a difference.
        return {self.switch or SWITCHES[0]: thinking, **others}

    def _render(self, prompt: Prompt, thinking: bool, variables: Mapping[str, Any]) -> str:
        if prompt.media and not self.shows_media:
            raise ValueError(
                f"prompt {prompt.id} shows {len(prompt.media)} images or videos, and {self._path} "
                "reads text only; take a vision-language model, or data without media"
            )
        try:
            text = self._apply(prompt, self._variables(thinking, variables))
            opened, closed = self._opened.search(text), self._closed.search(text)
            if thinking:
                # A message may outweigh the template's switch (/no_think). The mode outweighs it.
                text = text[: closed.start()] if closed else text
                return text if opened else f"{text}{self._tags.open}\n"
            if opened:
                # A template that always reasons: what it opened is closed at once.
                return text[: opened.start()] + self._tags.empty_block
            # A template with a switch knows how its model is told to answer at once, even if that
            # is without any think block; unless a message outweighs the switch (/think).
            told = {**variables, self.switch: True} if self.switch else None
            if closed or (told is not None and self._apply(prompt, told) != text):
                return text
            return text + self._tags.empty_block
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the chat template of {self._path} refuses prompt {prompt.id}: {error}"
            ) from error

    def _apply(self, prompt: Prompt, variables: Mapping[str, Any]) -> str:
        family, turns = self._family, [dict(message) for message in prompt.messages]
        if family is not None:
            turns = family.messages(turns)
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, **{"add_generation_prompt": True, **variables}
        )


def leave_out_unaskable(
    config: Config,
    stream: PromptStream,
    chat: ChatTemplate,
    media_tokens: Callable[[Prompt], int],
) -> None:
    """Leave out prompts that the policy cannot be asked, or with too little room for a response.

    Looks at the held-out prompts and at every training prompt (a sample where they are endless),
    each in every mode in which it can be asked. media_tokens: what a prompt's media add to the
    tokens of their markers. Raises ValueError where `data.too_long` refuses them, where none would
    be left, and for a task without end.
    """
    limit = config.rollout.max_model_length

    def candidates() -> Iterator[tuple[Prompt, str | None]]:
        # Held-out prompts are asked in every mode, whatever they are pinned to; training prompts
        # only in the mode they are pinned to.
        yield from ((prompt, None) for prompt in stream.heldout(config.eval.prompts))
        yield from ((prompt, prompt.mode) for prompt in stream.checked())

    prompts = candidates()
    while True:
        too_long: dict[str, dict[str, int]] = defaultdict(dict)
        reasons: dict[str, str] = {}
        for prompt, pin in prompts:
            seen = media_tokens(prompt)
            for name in config.modes if pin is None else (pin,):
                mode = config.modes[name]
                room, variables = limit - mode.max_tokens - seen, mode.chat_template_kwargs
                try:
                    length = chat.length_above(prompt, mode.thinking, room, variables)
                except UnaskablePrompt as error:
                    reasons[prompt.id] = shortened(f"unaskable: {error}")
                    continue
                if length is not None:
                    too_long[name][prompt.id] = length + seen
                    reasons[prompt.id] = (
                        f"too_long: {length + seen} prompt tokens + modes.{name}.max_tokens "
                        f"{mode.max_tokens} > rollout.max_model_length {limit}"
                    )
        if not reasons:
            return
        try:
            if too_long and config.data.too_long == "refuse":
                raise ValueError("data.too_long=refuse")
            stream.leave_out(reasons)
        except ValueError as error:
            if not too_long:
                raise ValueError(
                    shortened(
                        f"{len(reasons)} prompts cannot be asked ({error}), such as this one: "
                        f"{next(iter(reasons.values()))}"
                    )
                ) from error
            name, lengths = next(iter(too_long.items()))
            ids = ", ".join(list(lengths)[:SHOWN_IDS])
            raise ValueError(
                shortened(
                    f"{len(lengths)} prompts are too long for mode {name}: up to "
                    f"{max(lengths.values())} prompt tokens + modes.{name}.max_tokens "
                    f"{config.modes[name].max_tokens} > rollout.max_model_length {limit}; raise "
                    "the last, lower the budget, or remove the prompts. The first ids: "
                    f"{shortened(ids, 200)} ({error})"
                )
            ) from error
        # Others have taken the places of the held-out prompts that went.
        prompts = ((prompt, None) for prompt in stream.heldout(config.eval.prompts))


def _open_tokenizer(path: str) -> Any:
    """The tokenizer of a model directory; raises ValueError where there is none to use."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        # transformers makes an empty one for some models that have none.
        if tokenizer(SAMPLE.messages[0]["content"], add_special_tokens=False)["input_ids"]:
            return tokenizer
        why = "it has no files of one"
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if "trust_remote_code" in str(error):
            why = "it is code of the checkpoint, which is never run here"
    raise ValueError(
        f"{path} has no usable tokenizer: {why}; copy tokenizer.json and tokenizer_config.json "
        "there, from the model that it was made from"
    )


def stored_end_tokens(directory: Path) -> set[int]:
    """The tokens that end a response by the files of a model, besides the tokenizer's own."""
    # Chat models often end a turn with another token than the tokenizer's end of sequence.
    config = read_json(directory / "config.json")
    # Of a vision-language model the settings of its language model count where it has none itself.
    settings = (config.get("text_config") or {}) | config
    ends = [
        stored.get("eos_token_id")
        for stored in (read_json(directory / "generation_config.json"), settings)
    ]
    listed = [*chain.from_iterable(each if isinstance(each, list) else [each] for each in ends)]
    if wrong := [token for token in listed if not isinstance(token, int | None)]:
        raise ValueError(
            f"eos_token_id in config.json or generation_config.json of {directory} must be the id "
            f"of a token or a list of ids, got {wrong[0]!r:.60}"
        )
    return {token for token in listed if token is not None}
