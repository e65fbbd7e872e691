//! Turns statements into executable instructions. Each family of instructions decodes and runs in
//! its own file under `exec`; a mnemonic or modifier that none of them knows is an error.

use std::collections::HashMap;

use crate::exec::{self, Action, Instruction};
use crate::isa::{Guard, KernelText, Operand, Param, Reg, Source, Statement, Type};

/// A kernel ready to run.
pub struct Kernel {
    /// Entry name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Instructions; a final `exit` is always there.
    pub code: Vec<Instruction>,
    /// Registers in each file.
    pub registers: [u32; 3],
    /// Bytes of static shared memory; dynamic shared memory starts there.
    pub static_shared: usize,
    /// Bytes of local memory a thread.
    pub local: usize,
    /// Upper bound on threads per block, from `.maxntid` or `.reqntid`.
    pub max_threads: Option<u32>,
    /// Blocks that one multiprocessor must hold, from `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
    /// Blocks may see each other's results through global memory, so they run in order.
    pub ordered_blocks: bool,
}

impl Kernel {
    /// Decodes a kernel.
    ///
    /// # Errors
    /// A message naming the PTX line of what is not supported.
    pub fn decode(text: &KernelText) -> Result<Kernel, String> {
        let mut labels = HashMap::new();
        for (name, index) in &text.labels {
            if labels.insert(name.as_str(), *index).is_some() {
                return Err(format!("{}: label {name} stands twice", text.name));
            }
        }
        let targets: HashMap<&str, &[String]> =
            text.targets.iter().map(|(n, t)| (n.as_str(), t.as_slice())).collect();
        let mut code = Vec::with_capacity(text.statements.len() + 1);
        for statement in &text.statements {
            let mut decoder = Decoder::new(statement, &labels, &targets);
            let action = exec::decode(&mut decoder)
                .and_then(|action| decoder.finish().map(|()| action))
                .map_err(|e| {
                    let mnemonic = decoder.mnemonic();
                    format!("{}: {}: {mnemonic}: {e}", text.name, statement.place)
                })?;
            let guard = statement.guard;
            code.push(Instruction { action, guard, place: statement.place });
        }
        let place = text.statements.last().map(|s| s.place).unwrap_or_default();
        code.push(Instruction { action: Action::Exit, guard: None::<Guard>, place });
        let global_atomic = |s: &Statement| {
            matches!(s.opcode.as_str(), "atom" | "red")
                && !s.modifiers.iter().any(|m| m.starts_with("shared"))
        };
        Ok(Kernel {
            name: text.name.clone(),
            params: text.params.clone(),
            code,
            registers: text.registers,
            static_shared: text.static_shared,
            local: text.local,
            max_threads: text.max_threads,
            min_blocks: text.min_blocks,
            cluster: text.cluster,
            ordered_blocks: text.statements.iter().any(global_atomic),
        })
    }

    /// Bytes of the parameter block.
    pub fn param_bytes(&self) -> usize {
        self.params.last().map_or(0, |p| p.offset + p.size)
    }
}

/// A statement whose modifiers are consumed one by one; what is left over is not understood.
pub struct Decoder<'a> {
    statement: &'a Statement,
    left: Vec<&'a str>,
    labels: &'a HashMap<&'a str, usize>,
    targets: &'a HashMap<&'a str, &'a [String]>,
}

impl<'a> Decoder<'a> {
    fn new(
        statement: &'a Statement,
        labels: &'a HashMap<&'a str, usize>,
        targets: &'a HashMap<&'a str, &'a [String]>,
    ) -> Self {
        let left = statement.modifiers.iter().map(String::as_str).collect();
        Decoder { statement, left, labels, targets }
    }

    /// First part of the mnemonic.
    pub fn opcode(&self) -> &'a str {
        &self.statement.opcode
    }

    /// The whole mnemonic.
    pub fn mnemonic(&self) -> String {
        let parts = std::iter::once(&self.statement.opcode).chain(&self.statement.modifiers);
        parts.map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// Consumes a modifier if it is there.
    pub fn take(&mut self, word: &str) -> bool {
        let at = self.left.iter().position(|m| *m == word);
        at.map(|i| self.left.remove(i)).is_some()
    }

    /// Consumes every modifier of the list that is there.
    pub fn ignore(&mut self, words: &[&str]) {
        self.left.retain(|m| !words.contains(m));
    }

    /// Consumes the first modifier that is in the table and returns its meaning.
    pub fn choose<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let (at, value) = self.left.iter().enumerate().find_map(|(i, m)| {
            table.iter().find(|(word, _)| word == m).map(|(_, value)| (i, *value))
        })?;
        self.left.remove(at);
        Some(value)
    }

    /// Consumes all modifiers that are left.
    pub fn ignore_rest(&mut self) {
        self.left.clear();
    }

    /// As [`Decoder::choose`], but one of the words must be there.
    pub fn require<T: Copy>(&mut self, what: &str, table: &[(&str, T)]) -> Result<T, String> {
        self.choose(table).ok_or_else(|| format!("no {what} that is supported"))
    }

    /// Consumes the modifier that starts with `prefix` and returns the rest of it.
    pub fn take_prefixed(&mut self, prefix: &str) -> Option<&'a str> {
        let at = self.left.iter().position(|m| m.starts_with(prefix))?;
        self.left.remove(at).strip_prefix(prefix)
    }

    /// Consumes the first type modifier.
    pub fn ty(&mut self) -> Result<Type, String> {
        let at = self.left.iter().position(|m| Type::parse(m).is_some()).ok_or("no type")?;
        Type::parse(self.left.remove(at)).ok_or_else(|| "no type".into())
    }

    /// Number of operands.
    pub fn operands(&self) -> usize {
        self.statement.operands.len()
    }

    /// Operand `index`.
    pub fn operand(&self, index: usize) -> Result<&'a Operand, String> {
        self.statement.operands.get(index).ok_or_else(|| format!("operand {index} is missing"))
    }

    /// Operand `index` as a readable value.
    pub fn source(&self, index: usize) -> Result<Source, String> {
        value(self.operand(index)?)
    }

    /// Operand `index` as a readable value, if present.
    pub fn optional_source(&self, index: usize) -> Result<Option<Source>, String> {
        if index < self.operands() { self.source(index).map(Some) } else { Ok(None) }
    }

    /// Operand `index` as a register to write.
    pub fn dest(&self, index: usize) -> Result<Reg, String> {
        register(self.operand(index)?)
    }

    /// Operand `index` as a register to write, or nothing for `_`.
    pub fn optional_dest(&self, index: usize) -> Result<Option<Reg>, String> {
        match self.operand(index)? {
            Operand::Sink => Ok(None),
            operand => register(operand).map(Some),
        }
    }

    /// Operand `index` as a list of registers (one register counts as a list).
    pub fn registers(&self, index: usize) -> Result<Vec<Reg>, String> {
        match self.operand(index)? {
            Operand::Vector(items) => items.iter().map(register).collect(),
            operand => Ok(vec![register(operand)?]),
        }
    }

    /// As [`Decoder::registers`], where `_` leaves an element out.
    pub fn registers_or_sinks(&self, index: usize) -> Result<Vec<Option<Reg>>, String> {
        let element = |operand: &Operand| match operand {
            Operand::Sink => Ok(None),
            operand => register(operand).map(Some),
        };
        match self.operand(index)? {
            Operand::Vector(items) => items.iter().map(element).collect(),
            operand => Ok(vec![element(operand)?]),
        }
    }

    /// Operand `index` as a list of readable values (one value counts as a list).
    pub fn sources(&self, index: usize) -> Result<Vec<Source>, String> {
        match self.operand(index)? {
            Operand::Vector(items) => items.iter().map(value).collect(),
            operand => Ok(vec![value(operand)?]),
        }
    }

    /// Operand `index` as `[base + offset]`.
    pub fn address(&self, index: usize) -> Result<(Source, i64), String> {
        match self.operand(index)? {
            Operand::Address { base, offset, items } if items.is_empty() => Ok((*base, *offset)),
            other => Err(format!("operand {index} is not an address: {other:?}")),
        }
    }

    /// Operand `index` as an immediate.
    pub fn immediate(&self, index: usize) -> Result<u64, String> {
        match self.operand(index)? {
            Operand::Value(Source::Imm(value)) => Ok(*value),
            other => Err(format!("operand {index} is not an immediate: {other:?}")),
        }
    }

    /// Operand `index` as a branch target.
    pub fn target(&self, index: usize) -> Result<usize, String> {
        match self.operand(index)? {
            Operand::Label(name) => self.label(name),
            other => Err(format!("operand {index} is not a label: {other:?}")),
        }
    }

    /// Operand `index` as a `.branchtargets` list.
    pub fn target_list(&self, index: usize) -> Result<Vec<usize>, String> {
        match self.operand(index)? {
            Operand::Label(name) => {
                let list = self.targets.get(name.as_str()).ok_or(format!("list {name}"))?;
                list.iter().map(|label| self.label(label)).collect()
            }
            other => Err(format!("operand {index} is not a target list: {other:?}")),
        }
    }

    fn label(&self, name: &str) -> Result<usize, String> {
        self.labels.get(name).copied().ok_or_else(|| format!("unknown name {name:?}"))
    }

    /// Fails if a modifier was not understood.
    fn finish(&self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some(word) => Err(format!("modifier .{word} is not supported")),
        }
    }
}

/// An operand as a readable value.
pub fn value(operand: &Operand) -> Result<Source, String> {
    match operand {
        Operand::Value(source) => Ok(*source),
        Operand::Label(name) => Err(format!("unknown name {name:?}")),
        other => Err(format!("{other:?} is not a value")),
    }
}

/// An operand as a register.
pub fn register(operand: &Operand) -> Result<Reg, String> {
    match operand {
        Operand::Value(Source::Reg(reg)) => Ok(*reg),
        other => Err(format!("{other:?} is not a register")),
    }
}
