//! Which block of the KV cache holds what; input: the keys of token blocks, output: block numbers. It never touches the cache itself.
//!
//! - A block holds the keys and values of a fixed number of tokens, and is used by one sequence or shared by several.
//! - A full block can be published under its [`BlockKey`]: a hash of its tokens, of all that stands before them, and of a salt. A sequence that
//!   starts with the same tokens and has the same salt takes published blocks instead of computing them again.
//! - A published block that nobody uses is parked. Parked blocks count as free: the longest parked one is reused when no empty block is left.
//!
//! The key is a cryptographic hash, so that no tenant can make up a prompt that reads another's blocks; the salt (tenant and model) keeps even
//! equal prompts of two tenants apart, so that timing tells nobody what another one asked.

use std::collections::{BTreeMap, HashMap};

/// Names the content of a full block: its tokens, all tokens before them, and the salt of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// Where every chain of one salt starts.
    pub fn root(salt: &[u8]) -> Self {
        Self(blake3::derive_key("portalis kv blocks 1", salt))
    }

    /// The key of the block that follows.
    pub fn child(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// The keys of all full blocks of one sequence; each is computed once.
#[derive(Debug, Clone)]
pub struct KeyChain {
    root: BlockKey,
    keys: Vec<BlockKey>,
}

impl KeyChain {
    /// A chain without blocks.
    pub fn new(salt: &[u8]) -> Self {
        Self {
            root: BlockKey::root(salt),
            keys: Vec::new(),
        }
    }

    /// Adds the keys of blocks that became full; `tokens` are all tokens of the sequence.
    pub fn extend(&mut self, tokens: &[u32], block_tokens: usize) {
        let known = self.keys.len() * block_tokens;
        for block in tokens.get(known..).unwrap_or_default().chunks_exact(block_tokens) {
            let parent = self.keys.last().unwrap_or(&self.root);
            self.keys.push(parent.child(block));
        }
    }

    /// The keys in the order of the blocks.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Tables that hold it.
    uses: u32,
    /// Its key, when it is published.
    key: Option<BlockKey>,
    /// When it was parked, on the pool's own clock; has no meaning while it is used.
    parked_at: u64,
}

/// A fixed number of blocks, each empty, used or parked.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Unused blocks whose content is of no use.
    empty: Vec<u32>,
    /// Unused blocks that can be found by their key, the longest parked first.
    parked: BTreeMap<u64, u32>,
    published: HashMap<BlockKey, u32>,
    /// Counts parkings: the order of `parked`.
    clock: u64,
}

impl BlockPool {
    /// A pool of empty blocks.
    pub fn new(blocks: u32) -> Self {
        Self {
            blocks: vec![Block::default(); blocks as usize],
            // Low numbers first: the cache's pages are touched only as far as they are needed.
            empty: (0..blocks).rev().collect(),
            parked: BTreeMap::new(),
            published: HashMap::new(),
            clock: 0,
        }
    }

    /// All blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be allocated now: empty and parked ones.
    pub fn free(&self) -> usize {
        self.empty.len() + self.parked.len()
    }

    /// Unused blocks whose content can still be found.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// A block for one user, its content undefined; the longest parked one is given up when none is empty.
    pub fn allocate(&mut self) -> Option<u32> {
        let number = match self.empty.pop() {
            Some(number) => number,
            None => {
                let (_, number) = self.parked.pop_first()?;
                if let Some(key) = self.blocks[number as usize].key.take() {
                    self.published.remove(&key);
                }
                number
            }
        };
        self.blocks[number as usize].uses = 1;
        Some(number)
    }

    /// Takes one more use of the block that was published under the key.
    pub fn take(&mut self, key: &BlockKey) -> Option<u32> {
        let number = *self.published.get(key)?;
        let block = &mut self.blocks[number as usize];
        if block.uses == 0 {
            self.parked.remove(&block.parked_at);
        }
        block.uses += 1;
        Some(number)
    }

    /// How many of the leading keys are published, and how many of those blocks are unused (taking them lowers [`Self::free`]).
    pub fn find(&self, keys: &[BlockKey]) -> Found {
        let mut found = Found::default();
        for key in keys {
            let Some(&number) = self.published.get(key) else {
                break;
            };
            found.blocks += 1;
            found.parked += usize::from(self.blocks[number as usize].uses == 0);
        }
        found
    }

    /// Lets others find a used block; false when the key names another block already, or the block has a key.
    pub fn publish(&mut self, number: u32, key: BlockKey) -> bool {
        let block = &mut self.blocks[number as usize];
        if block.key.is_some() || self.published.contains_key(&key) {
            return false;
        }
        block.key = Some(key);
        self.published.insert(key, number);
        true
    }

    /// Takes a block's key away: its content turned out not to be there.
    pub fn retract(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        let Some(key) = block.key.take() else {
            return;
        };
        self.published.remove(&key);
        if block.uses == 0 {
            self.parked.remove(&block.parked_at);
            self.empty.push(number);
        }
    }

    /// Gives one use of a block back.
    pub fn release(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        debug_assert!(block.uses > 0, "block {number} was released more often than taken");
        block.uses = block.uses.saturating_sub(1);
        if block.uses > 0 {
            return;
        }
        if block.key.is_some() {
            block.parked_at = self.clock;
            self.parked.insert(self.clock, number);
            self.clock += 1;
        } else {
            self.empty.push(number);
        }
    }
}

/// What [`BlockPool::find`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Leading blocks that are published.
    pub blocks: usize,
    /// Those of them that nobody uses.
    pub parked: usize,
}

/// The blocks of one sequence, in the order of its tokens. It must be released into its pool; dropping it would lose the blocks.
#[derive(Debug, Default)]
#[must_use = "blocks that are not released are lost"]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// Leading blocks for which publishing was tried; they are full.
    published: usize,
}

impl BlockTable {
    /// Starts with the published blocks of the leading keys.
    pub fn adopt(pool: &mut BlockPool, keys: &[BlockKey]) -> Self {
        let blocks: Vec<u32> = keys.iter().map_while(|key| pool.take(key)).collect();
        Self {
            published: blocks.len(),
            blocks,
        }
    }

    /// The block numbers.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Grows to `blocks` blocks, or not at all when the pool has too few.
    pub fn grow(&mut self, pool: &mut BlockPool, blocks: usize) -> bool {
        let missing = blocks.saturating_sub(self.blocks.len());
        if missing > pool.free() {
            return false;
        }
        self.blocks.extend((0..missing).map_while(|_| pool.allocate()));
        true
    }

    /// Publishes the first `full` blocks under their keys; returns those that can be found only since now.
    pub fn publish(&mut self, pool: &mut BlockPool, keys: &[BlockKey], full: usize) -> Vec<u32> {
        let mut fresh = Vec::new();
        let end = full.min(keys.len()).min(self.blocks.len());
        while self.published < end {
            let number = self.blocks[self.published];
            if pool.publish(number, keys[self.published]) {
                fresh.push(number);
            }
            self.published += 1;
        }
        fresh
    }

    /// Gives all blocks back, the last first: the start of a prompt is what others are likely to have too, so it is kept longest.
    pub fn release(&mut self, pool: &mut BlockPool) {
        for number in self.blocks.drain(..).rev() {
            pool.release(number);
        }
        self.published = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK_TOKENS: usize = 4;

    fn chain(salt: &[u8], tokens: &[u32]) -> KeyChain {
        let mut chain = KeyChain::new(salt);
        chain.extend(tokens, BLOCK_TOKENS);
        chain
    }

    #[test]
    fn keys_depend_on_everything_before_and_on_the_salt() {
        let tokens: Vec<u32> = (0..12).collect();
        let one = chain(b"a", &tokens);
        assert_eq!(one.keys().len(), 3);
        assert_eq!(one.keys(), chain(b"a", &tokens).keys());
        let mut piecewise = KeyChain::new(b"a");
        for end in 0..=tokens.len() {
            piecewise.extend(&tokens[..end], BLOCK_TOKENS);
            assert_eq!(piecewise.keys().len(), end / BLOCK_TOKENS);
        }
        assert_eq!(piecewise.keys(), one.keys());
        let other = chain(b"b", &tokens);
        assert!(one.keys().iter().all(|key| !other.keys().contains(key)));
        let mut changed = tokens.clone();
        changed[0] = 99;
        assert_ne!(one.keys()[2], chain(b"a", &changed).keys()[2]);
    }

    #[test]
    fn the_longest_parked_block_goes_first_and_a_prompts_start_stays() {
        let mut pool = BlockPool::new(3);
        let keys = chain(b"", &(0..12).collect::<Vec<_>>());
        let mut table = BlockTable::default();
        assert!(table.grow(&mut pool, 3));
        assert_eq!(table.publish(&mut pool, keys.keys(), 3).len(), 3);
        let numbers = table.blocks().to_vec();
        table.release(&mut pool);
        assert_eq!((pool.free(), pool.parked()), (3, 3));
        assert_eq!(pool.allocate(), Some(numbers[2]));
        assert_eq!(pool.find(keys.keys()), Found { blocks: 2, parked: 2 });
        let mut again = BlockTable::adopt(&mut pool, keys.keys());
        assert_eq!(again.blocks(), &numbers[..2]);
        assert_eq!(pool.find(keys.keys()), Found { blocks: 2, parked: 0 });
        assert_eq!(pool.allocate(), None);
        assert!(!again.grow(&mut pool, 3));
        assert_eq!(again.blocks().len(), 2);
        again.release(&mut pool);
        pool.release(numbers[2]);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn a_retracted_block_is_not_found_whether_used_or_parked() {
        let mut pool = BlockPool::new(2);
        let keys = chain(b"", &(0..8).collect::<Vec<_>>());
        let mut table = BlockTable::default();
        assert!(table.grow(&mut pool, 2));
        let fresh = table.publish(&mut pool, keys.keys(), 2);
        pool.retract(fresh[0]);
        assert_eq!(pool.find(keys.keys()), Found::default());
        table.release(&mut pool);
        assert_eq!((pool.free(), pool.parked()), (2, 1));
        pool.retract(fresh[1]);
        assert_eq!((pool.free(), pool.parked()), (2, 0));
        assert_eq!(pool.take(&keys.keys()[1]), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A new sequence with these tokens.
        Start(Vec<u32>),
        /// Sequence `.0 % live` gets tokens.
        Append(usize, Vec<u32>),
        /// It leaves.
        Leave(usize),
    }

    /// Few different tokens, so that prefixes are often equal.
    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0..2_u32, 0..24)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => tokens().prop_map(Step::Start),
            3 => (any::<usize>(), tokens()).prop_map(|(at, tokens)| Step::Append(at, tokens)),
            2 => any::<usize>().prop_map(Step::Leave),
        ]
    }

    struct Live {
        salt: u8,
        tokens: Vec<u32>,
        chain: KeyChain,
        table: BlockTable,
    }

    /// A pool together with what a cache would hold: per block the salt and all tokens up to its end.
    struct World {
        pool: BlockPool,
        cache: Vec<(u8, Vec<u32>)>,
        live: Vec<Live>,
    }

    impl World {
        /// Stores what the tokens from block `from` on are, and publishes the full blocks.
        fn write(&mut self, at: usize, from: usize) {
            let live = &mut self.live[at];
            for (index, number) in live.table.blocks().iter().enumerate().skip(from) {
                let end = live.tokens.len().min((index + 1) * BLOCK_TOKENS);
                self.cache[*number as usize] = (live.salt, live.tokens[..end].to_vec());
            }
            live.chain.extend(&live.tokens, BLOCK_TOKENS);
            let full = live.tokens.len() / BLOCK_TOKENS;
            live.table.publish(&mut self.pool, live.chain.keys(), full);
        }

        fn start(&mut self, salt: u8, tokens: Vec<u32>) {
            let chain = chain(&[salt], &tokens);
            let found = self.pool.find(chain.keys());
            let free = self.pool.free();
            let mut table = BlockTable::adopt(&mut self.pool, chain.keys());
            let reused = table.blocks().len();
            assert_eq!((reused, self.pool.free()), (found.blocks, free - found.parked));
            for (index, number) in table.blocks().iter().enumerate() {
                let wanted = (salt, tokens[..(index + 1) * BLOCK_TOKENS].to_vec());
                assert_eq!(
                    self.cache[*number as usize], wanted,
                    "a block with other content was given"
                );
            }
            if !table.grow(&mut self.pool, tokens.len().div_ceil(BLOCK_TOKENS)) {
                table.release(&mut self.pool);
                assert_eq!(self.pool.free(), free);
                return;
            }
            self.live.push(Live {
                salt,
                tokens,
                chain,
                table,
            });
            self.write(self.live.len() - 1, reused);
        }

        fn append(&mut self, at: usize, tokens: &[u32]) {
            let live = &mut self.live[at];
            let from = live.tokens.len() / BLOCK_TOKENS;
            let blocks = (live.tokens.len() + tokens.len()).div_ceil(BLOCK_TOKENS);
            if live.table.grow(&mut self.pool, blocks) {
                live.tokens.extend_from_slice(tokens);
                self.write(at, from);
            }
        }

        fn check(&self) {
            let mut used = std::collections::HashSet::new();
            for live in &self.live {
                assert_eq!(live.table.blocks().len(), live.tokens.len().div_ceil(BLOCK_TOKENS));
                for (index, number) in live.table.blocks().iter().enumerate() {
                    used.insert(*number);
                    let end = live.tokens.len().min((index + 1) * BLOCK_TOKENS);
                    let wanted = (live.salt, live.tokens[..end].to_vec());
                    assert_eq!(
                        self.cache[*number as usize], wanted,
                        "somebody else wrote a block in use"
                    );
                }
            }
            assert_eq!(self.pool.free() + used.len(), self.pool.blocks());
        }
    }

    proptest! {
        #[test]
        fn blocks_are_neither_lost_nor_mixed_up(
            blocks in 1..12_u32,
            steps in prop::collection::vec((0..2_u8, step()), 1..80),
        ) {
            let mut world = World {
                pool: BlockPool::new(blocks),
                cache: vec![(0, Vec::new()); blocks as usize],
                live: Vec::new(),
            };
            for (salt, step) in steps {
                let live = world.live.len();
                match step {
                    Step::Start(tokens) => world.start(salt, tokens),
                    Step::Append(at, tokens) if live > 0 => world.append(at % live, &tokens),
                    Step::Leave(at) if live > 0 => world.live.swap_remove(at % live).table.release(&mut world.pool),
                    _ => {}
                }
                world.check();
            }
            for mut live in world.live.drain(..) {
                live.table.release(&mut world.pool);
            }
            prop_assert_eq!(world.pool.free(), blocks as usize);
            // Whatever was cached, all blocks can be had again, each once.
            let mut all: Vec<u32> = std::iter::from_fn(|| world.pool.allocate()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..blocks).collect::<Vec<_>>());
            prop_assert_eq!(world.pool.parked(), 0);
        }
    }
}
