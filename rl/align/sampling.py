"""The policy's responses to the training prompts that pairs come from."""

from collections import Counter
from collections.abc import Callable, Sequence

from rewards.preference.preference import final_answer
from rl.align.claims.files import from_row, to_row
from rl.align.claims.types import Response
from rl.config.run import Config
from rl.evaluate.evaluation import Encode, for_each
from rl.loop.interfaces import GenerationFailed, Sampler
from rl.loop.loop import sampling_seed
from rl.loop.modes import draw_step
from rl.loop.stages import Prompt, RolloutRequest
from rl.run.jsonl import Journal
from rollout.prompts.stream import PromptStream


def sampling_requests(
    config: Config, stream: PromptStream, encode: Encode, iteration: int
) -> list[RolloutRequest]:
    """One request per prompt, each prompt once: `align.prompts` of them, or all that there are.

    Those come first that RL would have asked next, and each iteration (from 1) goes on behind the
    one before it.
    """
    align = config.align
    wanted = min(align.prompts, stream.num_train or align.prompts)
    # As many steps of the prompt stream as an iteration uses up, unless prompts repeat.
    num_steps = -(-wanted // config.rollout.prompts_per_step)
    # What a policy chooses goes on as in one of the other modes, where it is aligned.
    choosing = config.choosing
    shares = align.mix or {
        name: mode.share for name, mode in config.modes.items() if name not in choosing
    }
    drawn: dict[str, tuple[Prompt, str]] = {}
    step = config.steps + (iteration - 1) * num_steps
    while len(drawn) < wanted:
        prompts = stream.prompts(step)
        # A row of the data may prescribe its mode, which then counts towards the share.
        pinned = [None if prompt.mode in choosing else prompt.mode for prompt in prompts]
        modes = draw_step(config.seed, step, shares, pinned, "stratified")
        for prompt, mode in zip(prompts, modes, strict=True):
            # A step may draw a prompt that an earlier one has drawn: the first mode stays.
            drawn.setdefault(prompt.id, (prompt, mode))
        step += 1

    def request(prompt: Prompt, mode: str) -> RolloutRequest:
        group_id = f"align/{iteration}/{prompt.id}"
        return RolloutRequest(
            group_id=group_id,
            prompt=prompt,
            mode=mode,
            prompt_token_ids=encode(prompt, mode),
            n=align.responses,
            max_tokens=config.modes[mode].max_tokens,
            temperature=align.temperature,
            top_p=align.top_p,
            # Always seeded: a pass that was cut short must sample what it would have sampled.
            seed=sampling_seed(config.seed, group_id),
        )

    return [request(*of) for of in list(drawn.values())[:wanted]]


async def sample(
    config: Config,
    requests: Sequence[RolloutRequest],
    engine: Sampler,
    journal: Journal,
    advance: Callable[[], None],
) -> tuple[list[Response], Counter[str]]:
    """Return the responses to all requests, and how many groups failed, by reason.

    A group is in the journal before it counts as done, and one that is there is not asked for
    again. Responses come back in the order of the requests.
    """
    known: dict[str, list[Response]] = {}
    for record in journal.records:
        known[record["group_id"]] = [from_row(Response, row) for row in record["responses"]]
    failures: Counter[str] = Counter()

    async def ask(request: RolloutRequest) -> None:
        name = request.group_id
        if name not in known:
            try:
                group = await engine.generate(request)
            except GenerationFailed as failed:
                failures[failed.failure.reason] += 1
            else:
                responses = known[name] = []
                for index, each in enumerate(group.trajectories):
                    ids = tuple(each.response_token_ids.tolist())
                    tags = config.policy.think_tags
                    answer = final_answer(each.answer, each.finish_reason, tags)
                    asked = request.prompt, request.mode, index
                    responses.append(Response(*asked, ids, each.text, answer))
                journal.add({"group_id": name, "responses": [to_row(each) for each in known[name]]})
        advance()

    await for_each(config, requests, ask)
    # Groups finish in any order; that of the requests makes two passes of one seed equal.
    return [r for request in requests for r in known.get(request.group_id, [])], failures
