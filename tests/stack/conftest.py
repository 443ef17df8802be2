import pytest

from tests.support.stacks import ComposeStack, Stack


@pytest.fixture
def compose(stack: Stack) -> ComposeStack:
    """Return the session's stack in containers. The test has to parametrize `stack` with it."""
    assert isinstance(stack, ComposeStack)
    return stack
