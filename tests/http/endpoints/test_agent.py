"""Agents, over real HTTP: what every client can do, and what only ours can."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio


class TestCreate:
    async def test_and_read(self, client, models, ground):
        """What an agent is made of comes back, from whichever call it is read."""
        wanted = models("agent").AgentForCreate(
            name="Ägent 🤖",
            description="d",
            external_identifier=ground.new_name(),
            id=ground.new_id(),
            owner_person_id="p",
            risk_profile_id="r",
            team_id="t",
        )
        made = await client.agents.create(details=wanted, idempotency_key=ground.new_key())
        said = wanted.model_dump()
        assert {name: getattr(made, name) for name in said} == said
        assert (made.type, made.status) == ("agent", "pending")
        assert made.available_actions.model_dump() == {
            "update": True,
            "retire": True,
            "reinstate": False,
            "delete": True,
        }
        assert made.inserted_at == made.updated_at
        assert await client.agents.get(made.id) == made
        assert await client.agents.show(agent_id=made.id) == made
        found = await client.agents.show(
            external_identifier=made.external_identifier,
            environment_id=None,
            include_counts=True,
            include_risk_rollup=True,
        )
        assert found == made
        assert found.instance_counts.total == 0

    async def test_least(self, client, models, ground):
        """A name is enough; the id is made by the platform, in the account's partition."""
        made = await client.agents.create(models("agent").AgentForCreate(name="A"), ground.new_key())
        assert made.id[10:16] == ground.store.account.partition
        assert (made.description, made.external_identifier, made.team_id) == (None, None, None)

    async def test_taken(self, client, models, errors, ground):
        """An identifier that is taken is refused, field by field."""
        wanted = models("agent").AgentForCreate(name="A", external_identifier=ground.new_name())
        await client.agents.create(wanted)
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await client.agents.create(wanted)
        assert refused.value.errors == {"external_identifier": ["has already been taken"]}
        assert (refused.value.status_code, refused.value.code) == (422, "validation_errors")
        assert str(refused.value) == "the request is not valid"


class TestUpdate:
    async def test_what_is_left_out_stays(self, client, models, ground):
        """Only what was set is changed."""
        agents, update = client.agents, models("agent").AgentForUpdate
        made = await agents.create(models("agent").AgentForCreate(name="A", description="d", team_id="t"))
        changed = await agents.update(made.id, update(name="B", owner_person_id="p"), ground.new_key())
        assert (changed.name, changed.description, changed.team_id) == ("B", "d", "t")
        assert changed.owner_person_id == "p"
        changed = await agents.update(
            agent_id=made.id, details=update(description="e"), idempotency_key=ground.new_key()
        )
        assert (changed.name, changed.description) == ("B", "e")
        assert await agents.get(made.id) == changed

    async def test_none_clears(self, ours, models):
        """None, set explicitly, clears, which the official client has no way to say."""
        made = await ours.agents.create(
            models("agent").AgentForCreate(name="A", description="d", team_id="t", risk_profile_id="r")
        )
        wanted = models("agent").AgentForUpdate(description=None, team_id=None)
        changed = await ours.agents.update(made.id, wanted)
        assert (changed.name, changed.description, changed.team_id) == ("A", None, None)
        assert changed.risk_profile_id == "r"

    async def test_nothing(self, client, models):
        """An update of nothing changes nothing."""
        made = await client.agents.create(models("agent").AgentForCreate(name="A", description="d"))
        changed = await client.agents.update(made.id, models("agent").AgentForUpdate())
        assert (changed.name, changed.description) == ("A", "d")


class TestLife:
    async def test_retire_reinstate_delete(self, client, models, errors, ground):
        """An agent is retired and taken back, and what was deleted is gone."""
        agents = client.agents
        made = await agents.create(models("agent").AgentForCreate(name="A"))
        retired = await agents.retire(made.id, ground.new_key())
        assert (retired.status, retired.available_actions.reinstate) == ("retired", True)
        assert (await agents.reinstate(made.id, ground.new_key())).status == "pending"
        assert (await agents.retire(agent_id=made.id)).status == "retired"
        assert (await agents.reinstate(agent_id=made.id)).status == "pending"
        assert (await agents.delete(made.id, ground.new_key())).id == made.id
        with pytest.raises(errors.PrefactorNotFoundError):
            await agents.get(made.id)

    async def test_what_the_state_forbids(self, client, models, errors, ground):
        """What is not possible in the present state is a 409 with the code that says so."""
        made = await client.agents.create(models("agent").AgentForCreate(name="A"))
        busy = (await ground.register(client)).agent_id
        for refused_call in (client.agents.reinstate(made.id), client.agents.delete(busy)):
            with pytest.raises(errors.PrefactorApiError) as refused:
                await refused_call
            assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")

    async def test_counts(self, client, ground):
        """An agent that runs is active, and counts its runs."""
        agent_id = ground.new_id()
        first = await ground.register(client, agent_id)
        await ground.register(client, agent_id)
        await client.agent_instances.finish(first.id, "cancelled")
        agent = await client.agents.show(agent_id=agent_id, include_counts=True)
        assert agent.status == "active"
        counts = agent.instance_counts
        assert (counts.total, counts.pending, counts.cancelled, counts.finished) == (2, 1, 1, 1)


class TestUnknown:
    @pytest.mark.parametrize("verb", ["get", "retire", "reinstate", "delete"])
    async def test_id(self, client, errors, ground, verb):
        """An id that nobody has is not found, whatever is asked of it."""
        with pytest.raises(errors.PrefactorNotFoundError) as refused:
            await getattr(client.agents, verb)(ground.new_id())
        assert (refused.value.status_code, refused.value.code) == (404, "not_found")

    async def test_id_of_update_and_show(self, client, models, errors, ground):
        """So for those that take more than the id."""
        with pytest.raises(errors.PrefactorNotFoundError):
            await client.agents.update(ground.new_id(), models("agent").AgentForUpdate(name="B"))
        with pytest.raises(errors.PrefactorNotFoundError):
            await client.agents.show(agent_id=ground.new_id())
        with pytest.raises(errors.PrefactorNotFoundError):
            await client.agents.show(external_identifier="nobody")

    async def test_show_of_nothing(self, client, errors):
        """To show, the platform must be told whom."""
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await client.agents.show()
        assert "agent_id" in refused.value.errors


class TestTwice:
    async def test_create(self, client, models, errors, ground):
        """The same key makes one agent and gives the same answer; with another content it is refused."""
        team, key = ground.new_name(), ground.new_key()
        wanted = models("agent").AgentForCreate(name="A", team_id=team)
        first = await client.agents.create(wanted, key)
        assert await client.agents.create(wanted, key) == first
        assert [each.id for each in await client.agents.list_agents(team_id=team)] == [first.id]
        with pytest.raises(errors.PrefactorApiError) as refused:
            await client.agents.create(models("agent").AgentForCreate(name="B", team_id=team), key)
        assert (refused.value.status_code, refused.value.code) == (409, "idempotency_conflict")

    async def test_changes(self, client, models, ground):
        """Each change, repeated with its key after all of them, answers as the first time and does nothing."""
        agents = client.agents
        made = await agents.create(models("agent").AgentForCreate(name="A"))
        keys = [ground.new_key() for _ in range(3)]

        async def do():
            return [
                await agents.update(made.id, models("agent").AgentForUpdate(name="B"), keys[0]),
                await agents.retire(made.id, keys[1]),
                await agents.reinstate(made.id, keys[2]),
            ]

        first = await do()
        assert [each.status for each in first] == ["pending", "retired", "pending"]
        await agents.update(made.id, models("agent").AgentForUpdate(name="C"))
        assert await do() == first
        assert (await agents.get(made.id)).name == "C"

    async def test_delete(self, client, models, ground):
        """A delete that is repeated with its key answers with what was deleted."""
        made = await client.agents.create(models("agent").AgentForCreate(name="A"))
        key = ground.new_key()
        assert await client.agents.delete(made.id, key) == await client.agents.delete(made.id, key)


class TestList:
    async def some(self, client, models, ground):
        """Make agents `a` to `e` of a team of their own."""
        team = ground.new_name()
        for name in "cebda":
            await client.agents.create(models("agent").AgentForCreate(name=name, team_id=team))
        return team

    async def test_filters(self, client, models, ground):
        """A list is of a team, of a person, of a risk profile, or of all of these."""
        person, profile, team = ground.new_name(), ground.new_name(), ground.new_name()
        ids = [
            (await client.agents.create(models("agent").AgentForCreate(name="A", **belongs))).id
            for belongs in (
                {"team_id": team, "owner_person_id": person, "risk_profile_id": profile},
                {"team_id": team, "owner_person_id": person},
                {"team_id": team},
            )
        ]

        async def listed(*args, **kwargs):
            return [each.id for each in await client.agents.list_agents(*args, **kwargs)]

        assert await listed(team_id=team) == ids
        assert await listed(owner_person_id=person) == ids[:2]
        assert await listed(profile) == ids[:1]
        assert await listed(None, team, person, "-inserted_at", 1, 1) == ids[:1]
        assert await listed(team_id=ground.new_name()) == []

    async def test_sorting(self, client, models, ground):
        """A list is sorted by the field that is named, with a minus the other way round."""
        team = await self.some(client, models, ground)
        for sorting, names in (("name", "abcde"), ("-name", "edcba"), (None, "cebda"), ("no such", "cebda")):
            page = await client.agents.list_agents(team_id=team, sorting=sorting)
            assert "".join(each.name for each in page) == names

    async def test_offsets(self, client, models, ground):
        """Pages are cut by offset and size."""
        team = await self.some(client, models, ground)
        pages = [
            [each.name for each in await client.agents.list_agents(None, team, None, "name", offset, 2)]
            for offset in (0, 2, 4, 6)
        ]
        assert pages == [["a", "b"], ["c", "d"], ["e"], []]

    async def test_pages(self, ours, models, ground):
        """Our pages are lists that know where they stand: following the next offset sees each item once."""
        team = await self.some(ours, models, ground)
        seen, offset = [], 0
        while offset is not None:
            page = await ours.agents.list_agents(team_id=team, sorting="-name", offset=offset, page_size=2)
            assert (page.pagination.item_count, page.pagination.page_count) == (5, 3)
            assert (page.sorting.field, page.sorting.direction) == ("name", "desc")
            assert page.pagination.page_index == len(seen) // 2 + 1
            seen += [each.name for each in page]
            offset = page.pagination.next_page_offset
        assert seen == ["e", "d", "c", "b", "a"]

    async def test_refusal(self, client, errors):
        """A page that makes no sense is refused."""
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await client.agents.list_agents(page_size=0)
        assert "pagination[page_size]" in refused.value.errors
