//! A pickle as data: the few opcodes and the few names a PyTorch checkpoint needs, nothing else.
//!
//! Nothing is ever executed. The opcodes and the (module, name) pairs are allow-lists; whatever is
//! not listed is an error that names it. Values live in one arena and refer to each other by index,
//! so neither a value nested a million deep nor one shared a million times costs more than its
//! bytes in the file. Opcodes are those of Python's `pickletools`, protocols 2 to 5.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// Opcodes one pickle may have. A checkpoint uses about forty for a tensor.
const MAX_OPS: usize = 1 << 22;

/// Index of a value in [`Pickle::values`].
pub type Id = usize;

/// One value of a pickle.
#[derive(Debug)]
pub enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A float: no checkpoint needs its value.
    Float,
    Str(&'a str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// What a persistent id stands for: the storage described by the tuple `Id`.
    Persistent(Id),
    /// A call of `_rebuild_tensor[_v2]` with the argument tuple.
    Tensor(Vec<Id>),
    /// Something allowed whose value does not matter: a device, a NumPy scalar.
    Opaque,
}

/// The names a pickle may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// `torch.Size`, which is a tuple.
    Size,
    /// A storage class, by its name.
    Storage(&'static str),
    /// A name that may be called or passed on, and whose result does not matter.
    Inert,
}

const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch.nn.parameter", "Parameter", Global::RebuildParameter),
    ("torch", "Size", Global::Size),
    ("torch", "DoubleStorage", Global::Storage("DoubleStorage")),
    ("torch", "FloatStorage", Global::Storage("FloatStorage")),
    ("torch", "HalfStorage", Global::Storage("HalfStorage")),
    ("torch", "BFloat16Storage", Global::Storage("BFloat16Storage")),
    ("torch", "LongStorage", Global::Storage("LongStorage")),
    ("torch", "IntStorage", Global::Storage("IntStorage")),
    ("torch", "ShortStorage", Global::Storage("ShortStorage")),
    ("torch", "CharStorage", Global::Storage("CharStorage")),
    ("torch", "ByteStorage", Global::Storage("ByteStorage")),
    ("torch", "BoolStorage", Global::Storage("BoolStorage")),
    ("torch", "UntypedStorage", Global::Storage("ByteStorage")),
    ("torch.storage", "UntypedStorage", Global::Storage("ByteStorage")),
    ("torch", "float64", Global::Inert),
    ("torch", "float32", Global::Inert),
    ("torch", "float16", Global::Inert),
    ("torch", "bfloat16", Global::Inert),
    ("torch", "int64", Global::Inert),
    ("torch", "int32", Global::Inert),
    ("torch", "int16", Global::Inert),
    ("torch", "int8", Global::Inert),
    ("torch", "uint8", Global::Inert),
    ("torch", "bool", Global::Inert),
    ("torch", "device", Global::Inert),
    ("numpy", "dtype", Global::Inert),
    ("numpy.core.multiarray", "scalar", Global::Inert),
    ("numpy._core.multiarray", "scalar", Global::Inert),
    ("_codecs", "encode", Global::Inert),
];

/// A pickle that was read: its values and which of them is the whole.
#[derive(Debug)]
pub struct Pickle<'a> {
    pub values: Vec<Value<'a>>,
    pub root: Id,
    /// Bytes up to and including STOP.
    pub len: usize,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the start of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Result<Pickle<'a>> {
        let mut machine = Machine { bytes, ..Machine::default() };
        let root = machine
            .run()
            .map_err(|e| e.context(format!("pickle: byte {}", machine.op_position)))?;
        Ok(Pickle { values: machine.values, root, len: machine.position })
    }

    /// The value `id` stands for.
    pub fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }

    /// The items of a tuple; none for anything else.
    pub fn tuple(&self, id: Id) -> &[Id] {
        match self.value(id) {
            Value::Tuple(items) => items,
            _ => &[],
        }
    }

    /// The items of a dictionary.
    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.value(id) {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match *self.value(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub fn size(&self, id: Id) -> Option<usize> {
        match *self.value(id) {
            Value::Int(n) => usize::try_from(n).ok(),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    op_position: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Stack heights at which a MARK stands.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id> {
        for _ in 0..MAX_OPS {
            self.op_position = self.position;
            let op = self.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.step(op)?;
        }
        Err(Error::limit(format!("more than {MAX_OPS} opcodes")))
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            0x80 => self.take(1).map(|_| ()),    // PROTO
            0x95 => self.take(8).map(|_| ()),    // FRAME
            b'(' => self.mark(),                 // MARK
            b'0' => self.pop().map(|_| ()),      // POP
            b'1' => self.pop_mark().map(|_| ()), // POP_MARK
            b'q' => self.remember(Some(1)),      // BINPUT
            b'r' => self.remember(Some(4)),      // LONG_BINPUT
            0x94 => self.remember(None),         // MEMOIZE
            b'h' => self.recall(1),              // BINGET
            b'j' => self.recall(4),              // LONG_BINGET
            b'c' => self.global(),               // GLOBAL
            0x93 => self.stack_global(),         // STACK_GLOBAL
            b'R' => self.reduce(),               // REDUCE
            b'b' => self.build(),                // BUILD
            b'Q' => self.persistent(),           // BINPERSID
            b'a' | b'e' | b's' | b'u' => self.fill(op),
            b')' | b't' | 0x85..=0x87 => self.tuple(op),
            _ => self.literal(op),
        }
    }

    /// Opcodes that push a value written in the pickle itself.
    fn literal(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(self.uint(4)? as u32 as i32)), // BININT
            b'K' => Value::Int(self.uint(1)? as i64),                   // BININT1
            b'M' => Value::Int(self.uint(2)? as i64),                   // BININT2
            0x8a => self.long()?,                                       // LONG1
            b'G' => self.take(8).map(|_| Value::Float)?,                // BINFLOAT
            b'X' => self.string(4)?,                                    // BINUNICODE
            0x8c => self.string(1)?,                                    // SHORT_BINUNICODE
            0x8d => self.string(8)?,                                    // BINUNICODE8
            b'U' => self.string(1)?,                                    // SHORT_BINSTRING
            b'T' => self.string(4)?,                                    // BINSTRING
            b'C' => self.raw(1)?,                                       // SHORT_BINBYTES
            b'B' => self.raw(4)?,                                       // BINBYTES
            0x8e => self.raw(8)?,                                       // BINBYTES8
            b'}' => Value::Dict(Vec::new()),                            // EMPTY_DICT
            b']' => Value::List(Vec::new()),                            // EMPTY_LIST
            other => {
                let shown = if other.is_ascii_graphic() {
                    format!("0x{other:02x} '{}'", other as char)
                } else {
                    format!("0x{other:02x}")
                };
                return Err(Error::unsupported(format!("opcode {shown} is not allowed")));
            }
        };
        self.push(value)
    }

    /// SETITEM, SETITEMS, APPEND and APPENDS.
    fn fill(&mut self, op: u8) -> Result<()> {
        let items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        match (&mut self.values[target], op) {
            (Value::List(list), b'a' | b'e') => list.extend(items),
            (Value::Dict(dict), b's' | b'u') if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            (Value::Opaque, _) => {}
            _ => return Err(Error::malformed("items for something that holds none")),
        }
        Ok(())
    }

    /// EMPTY_TUPLE, TUPLE and TUPLE1 to TUPLE3.
    fn tuple(&mut self, op: u8) -> Result<()> {
        let items = match op {
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            _ => {
                let n = usize::from(op - 0x84);
                let from = self.stack.len().checked_sub(n).filter(|&at| at >= self.floor());
                self.stack.split_off(from.ok_or_else(underflow)?)
            }
        };
        self.push(Value::Tuple(items))
    }

    fn global(&mut self) -> Result<()> {
        let module = self.line()?;
        let name = self.line()?;
        let global = find_global(module, name)?;
        self.push(Value::Global(global))
    }

    fn stack_global(&mut self) -> Result<()> {
        let name = self.pop()?;
        let module = self.pop()?;
        let (Value::Str(module), Value::Str(name)) = (&self.values[module], &self.values[name])
        else {
            return Err(Error::malformed("STACK_GLOBAL without two strings"));
        };
        let global = find_global(module, name)?;
        self.push(Value::Global(global))
    }

    /// The call of a listed global. What it makes is described, not made.
    fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let (Value::Global(global), Value::Tuple(items)) =
            (&self.values[callee], &self.values[arguments])
        else {
            return Err(Error::malformed("REDUCE of something that is not a name and a tuple"));
        };
        let value = match (global, items.as_slice()) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::OrderedDict, &[pairs]) => self.dict_of(pairs)?,
            (Global::RebuildTensor, items) => Value::Tensor(items.to_vec()),
            (Global::RebuildParameter, &[data, ..]) => {
                self.stack.push(data);
                return Ok(());
            }
            (Global::Size, &[sizes]) => match &self.values[sizes] {
                Value::Tuple(sizes) | Value::List(sizes) => Value::Tuple(sizes.clone()),
                _ => return Err(Error::malformed("torch.Size of something else than sizes")),
            },
            (Global::Inert, _) => Value::Opaque,
            (global, items) => {
                return Err(Error::unsupported(format!(
                    "{global:?} called with {} arguments",
                    items.len()
                )));
            }
        };
        self.push(value)
    }

    /// `OrderedDict([[key, value], ...])`, as Python 2 wrote it.
    fn dict_of(&self, pairs: Id) -> Result<Value<'a>> {
        let Value::List(pairs) = &self.values[pairs] else {
            return Err(Error::malformed("OrderedDict of something else than a list of pairs"));
        };
        let pair = |&id: &Id| match &self.values[id] {
            Value::Tuple(pair) | Value::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(Error::malformed("OrderedDict item that is not a pair")),
        };
        Ok(Value::Dict(pairs.iter().map(pair).collect::<Result<_>>()?))
    }

    /// Attributes set on an object, which are dropped: PyTorch puts `_metadata` on a state dict, and
    /// before 0.4 the state of autograd on a parameter.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        let target = self.top()?;
        match self.values[target] {
            Value::Dict(_) | Value::Tensor(_) | Value::Opaque => Ok(()),
            _ => Err(Error::unsupported("BUILD of something that has no attributes")),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        Ok(())
    }

    /// The lowest stack height that may be popped now: what lies under a MARK is out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() <= self.floor() {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().filter(|_| self.stack.len() > self.floor()).ok_or_else(underflow)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| Error::malformed("no MARK on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn mark(&mut self) -> Result<()> {
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        self.push(Value::Persistent(id))
    }

    /// Puts the top of the stack under a key of so many bytes, or under the next free one.
    fn remember(&mut self, key_bytes: Option<usize>) -> Result<()> {
        let key = match key_bytes {
            Some(n) => self.uint(n)?,
            None => self.memo.len() as u64,
        };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key_bytes: usize) -> Result<()> {
        let key = self.uint(key_bytes)?;
        let id = self.memo.get(&key).copied();
        self.stack.push(id.ok_or_else(|| Error::malformed(format!("memo {key} is not set")))?);
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.position.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| Error::malformed(format!("{n} bytes run past the end")))?;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian unsigned integer of `n` bytes, at most 8.
    fn uint(&mut self, n: usize) -> Result<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b)))
    }

    /// LONG1: a little-endian two's-complement integer. Only those of up to 8 bytes are sizes.
    fn long(&mut self) -> Result<Value<'a>> {
        let n = usize::from(self.byte()?);
        let bytes = self.take(n)?;
        if n > 8 {
            return Ok(Value::Opaque);
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..n].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn sized(&mut self, length_bytes: usize) -> Result<&'a [u8]> {
        let n = self.uint(length_bytes)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn string(&mut self, length_bytes: usize) -> Result<Value<'a>> {
        let text = std::str::from_utf8(self.sized(length_bytes)?);
        Ok(Value::Str(text.map_err(|_| Error::malformed("a string is not UTF-8"))?))
    }

    fn raw(&mut self, length_bytes: usize) -> Result<Value<'a>> {
        self.sized(length_bytes).map(|_| Value::Bytes)
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let end = rest.iter().take(256).position(|&b| b == b'\n');
        let end = end.ok_or_else(|| Error::malformed("a name without an end"))?;
        let text = std::str::from_utf8(&rest[..end]);
        self.position += end + 1;
        text.map_err(|_| Error::malformed("a name is not UTF-8"))
    }
}

fn underflow() -> Error {
    Error::malformed("the stack is empty")
}

fn find_global(module: &str, name: &str) -> Result<Global> {
    GLOBALS.iter().find(|row| row.0 == module && row.1 == name).map(|row| row.2).ok_or_else(|| {
        let shown = |s: &str| s.chars().take(80).collect::<String>().escape_debug().to_string();
        Error::unsupported(format!(
            "{}.{} is not on the list of names a checkpoint may use",
            shown(module),
            shown(name)
        ))
    })
}
