"""KV blocks: what is free, what is cached, and which goes first."""

from __future__ import annotations

from vllm_simulator.scheduler import BlockPool


def test_free_cached_blocks_count_as_free_and_are_found_again():
    pool = BlockPool(4)
    blocks = pool.take(2)
    for index, block in enumerate(blocks):
        pool.publish(block, (7, index))
    pool.release(blocks)
    assert (pool.free, pool.usage_ratio, pool.cached([(7, 0), (7, 1)])) == (4, 0.0, blocks)


def test_the_longest_leading_part_is_found_not_what_lies_behind_a_gap():
    pool = BlockPool(4)
    blocks = pool.take(2)
    pool.publish(blocks[0], (7, 0))
    pool.publish(blocks[1], (7, 2))
    assert pool.cached([(7, 0), (7, 1), (7, 2)]) == [blocks[0]]


def test_the_last_block_of_a_released_sequence_is_reused_first():
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.publish(first, (7, 0))
    pool.publish(second, (7, 1))
    pool.release([first, second])
    assert (pool.take(1), pool.cached([(7, 0), (7, 1)])) == ([second], [first])


def test_a_shared_block_stays_held_until_its_last_holder_leaves():
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.publish(blocks[0], (7, 0))
    pool.hold(blocks)
    pool.release(blocks)
    assert pool.free == 1
    pool.release(blocks)
    assert pool.free == 2


def test_holding_a_free_cached_block_uses_up_a_free_one():
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.publish(blocks[0], (7, 0))
    pool.release(blocks)
    assert pool.free_among(blocks) == 1
    pool.hold(blocks)
    assert (pool.free, pool.free_among(blocks)) == (1, 0)


def test_two_blocks_of_one_content_leave_the_first_in_the_cache():
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.publish(first, (7, 0))
    pool.publish(second, (7, 0))
    assert pool.cached([(7, 0)]) == [first]
