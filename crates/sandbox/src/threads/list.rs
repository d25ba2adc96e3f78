//! A list of system calls.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition as Condition, SeccompRule,
};

/// What must hold of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Argument {
    /// Which, from 0.
    index: u8,
    test: Test,
    value: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Is,
    IsNot,
    Masked(u32),
}

/// The low half of argument `index` is `value`.
pub(super) const fn is(index: u8, value: u32) -> Argument {
    let test = Test::Is;
    Argument { index, test, value }
}

/// The low half of argument `index` is not `value`.
pub(super) const fn is_not(index: u8, value: u32) -> Argument {
    let test = Test::IsNot;
    Argument { index, test, value }
}

/// Of the bits in `mask`, argument `index` has those of `value` and no others.
pub(super) const fn masked(index: u8, mask: u32, value: u32) -> Argument {
    let test = Test::Masked(mask);
    Argument { index, test, value }
}

/// A list of calls, each with the ways it may be made; none named: any way.
#[derive(Debug, Default)]
pub(super) struct Allowed(BTreeMap<i64, Vec<Vec<Argument>>>);

impl Allowed {
    /// Allows `calls`, whatever their arguments.
    pub(super) fn add(&mut self, calls: &[i64]) {
        for &call in calls {
            self.0.insert(call, Vec::new());
        }
    }

    /// Allows `call` where all of `arguments` hold, besides what is allowed already.
    pub(super) fn when(&mut self, call: i64, arguments: &[Argument]) {
        match self.0.get_mut(&call) {
            // Any way is allowed.
            Some(ways) if ways.is_empty() => {}
            // Lists that are joined have much in common.
            Some(ways) if ways.iter().any(|way| way == arguments) => {}
            Some(ways) => ways.push(arguments.to_vec()),
            None => drop(self.0.insert(call, vec![arguments.to_vec()])),
        }
    }

    /// Allows `ioctl` for these requests of one driver. Size and direction are not looked at: they differ between kernels, and
    /// drivers refuse what they do not know.
    pub(super) fn ioctls(&mut self, family: u8, numbers: &[u8]) {
        for &number in numbers {
            let request = u32::from(family) << 8 | u32::from(number);
            self.when(libc::SYS_ioctl, &[masked(1, 0xffff, request)]);
        }
    }

    /// As the compiler of filters wants them.
    pub(super) fn rules(&self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
        let condition = |argument: &Argument| {
            let compare = match argument.test {
                Test::Is => Compare::Eq,
                Test::IsNot => Compare::Ne,
                Test::Masked(mask) => Compare::MaskedEq(mask.into()),
            };
            Condition::new(argument.index, Length::Dword, compare, argument.value.into())
        };
        let rule = |way: &Vec<Argument>| SeccompRule::new(way.iter().map(condition).collect::<Result<_, _>>()?);
        self.0
            .iter()
            .map(|(&call, ways)| Ok((call, ways.iter().map(rule).collect::<Result<_, _>>()?)))
            .collect()
    }

    /// The calls on the list, however they may be made.
    #[cfg(test)]
    pub(super) fn calls(&self) -> impl Iterator<Item = i64> {
        self.0.keys().copied()
    }
}
