"""The client of the text rewards, over stand-ins for its Ray actors."""

import asyncio
from types import SimpleNamespace

from rewards.text.actor import TextRewardClient
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest
from tests.fakes import trajectory


class Actor:
    """Answers when it is told to, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[RolloutGroup] = []
        self.answers: list[asyncio.Future] = []
        self.parts = SimpleNamespace(remote=self._remote)

    def _remote(self, group: RolloutGroup, by_rules: bool) -> asyncio.Future:
        self.given.append(group)
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def group(name: str, n: int = 2) -> RolloutGroup:
    request = RolloutRequest(name, Prompt("p", (), "12"), "short", (1,), n, 16, 1.0, 0)
    return RolloutGroup(request, tuple(trajectory(num_response=4 + i) for i in range(n)))


def test_a_group_goes_to_the_actor_with_the_fewest_responses_to_score():
    async def main():
        actors = [Actor(), Actor()]
        client = TextRewardClient(actors)

        async def ask(name, n=2):
            task = asyncio.create_task(client.parts(group(name, n), True))
            await asyncio.sleep(0)
            return task

        large, small = await ask("large", 8), await ask("small")
        next_small = await ask("next small")
        actors[0].answers[0].set_result(["large"])
        assert await large == ["large"]
        last = await ask("last")
        for answer in (*actors[0].answers[1:], *actors[1].answers):
            answer.set_result([])
        await asyncio.gather(small, next_small, last)
        return [[given.request.group_id for given in actor.given] for actor in actors]

    assert asyncio.run(main()) == [["large", "last"], ["small", "next small"]]


def test_an_actor_is_given_texts_and_lengths_and_no_arrays_of_numbers():
    async def main():
        actor = Actor()
        asking = asyncio.create_task(TextRewardClient([actor]).parts(group("0"), True))
        await asyncio.sleep(0)
        actor.answers[0].set_result([])
        await asking
        return actor.given[0]

    given = asyncio.run(main()).trajectories
    assert [t.num_response_tokens for t in given] == [4, 5]
    assert [t.text for t in given] == ["12", "12"]
    assert all(len(t.token_ids) == len(t.rollout_logprobs) == 0 for t in given)
