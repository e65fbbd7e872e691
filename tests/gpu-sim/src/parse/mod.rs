//! PTX text to kernels: declarations are resolved (registers to indices, variables to addresses),
//! instructions stay as written. See the PTX ISA manual, "Syntax" and "Directives".

mod body;

use std::collections::HashMap;

use crate::isa::{Module, Type, Variable};
use crate::lex::{Token, tokens};

/// Stands for the start of dynamic shared memory until the static part has been added up.
const DYNAMIC_SHARED: u64 = 0x8000_5eed_0000_0000;

/// Parses a module. `allocate` gives the device address of each `.global` or `.const` variable.
///
/// # Errors
/// A message naming the PTX line.
pub fn parse(text: &str, allocate: &mut dyn FnMut(&[u8]) -> u64) -> Result<Module, String> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        module: Module::default(),
        symbols: HashMap::new(),
        shared: 0,
        dynamic_align: 1,
        allocate,
    };
    while parser.at < tokens.len() {
        parser.module_item().map_err(|e| parser.located(e))?;
    }
    Ok(parser.module)
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    module: Module,
    /// Module-scope variables: name to address in its state space.
    symbols: HashMap<String, u64>,
    /// Bytes of module-scope static shared memory.
    shared: usize,
    dynamic_align: usize,
    allocate: &'a mut dyn FnMut(&[u8]) -> u64,
}

/// A variable declaration after its state space: `.align n .type name[count] = {..};`.
struct Declared {
    name: String,
    align: usize,
    bytes: Vec<u8>,
    unsized_array: bool,
}

type Parsed<T> = Result<T, String>;

impl<'a> Parser<'a> {
    fn located(&self, message: String) -> String {
        let last = self.tokens.len().saturating_sub(1);
        let line = self.tokens.get(self.at.saturating_sub(1).min(last)).map_or(0, |t| t.line);
        format!("PTX line {line}: {message}")
    }

    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |t| t.text)
    }

    fn next(&mut self) -> Parsed<&'a str> {
        let token = self.tokens.get(self.at).ok_or("the text ends early")?;
        self.at += 1;
        Ok(token.text)
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == text && self.at < self.tokens.len();
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, text: &str) -> Parsed<()> {
        let found = self.next()?;
        if found == text { Ok(()) } else { Err(format!("expected {text:?}, found {found:?}")) }
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Parsed<T> {
        let word = self.next()?;
        literal(word)
            .and_then(|v| T::try_from(v).ok())
            .ok_or_else(|| format!("expected a number, found {word:?}"))
    }

    fn skip_line(&mut self) {
        let line = self.tokens[self.at - 1].line;
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Parsed<()> {
        while self.next()? != "{" {}
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn module_item(&mut self) -> Parsed<()> {
        let word = self.next()?;
        match word {
            ".version" => {
                let word = self.next()?;
                let parsed = word
                    .split_once('.')
                    .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
                self.module.version = parsed.ok_or_else(|| format!(".version {word:?}"))?;
            }
            ".address_size" | ".file" => self.skip_line(),
            ".target" => {
                self.module.target = self.next()?.to_string();
                self.skip_line();
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".section" => self.skip_braces()?,
            ".func" => self.skip_function()?,
            ".entry" => self.kernel()?,
            ".global" | ".const" => {
                let declared = self.declaration()?;
                let address = (self.allocate)(&declared.bytes);
                self.symbols.insert(declared.name.clone(), address);
                let Declared { name, bytes, .. } = declared;
                self.module.variables.push(Variable { name, bytes, address });
            }
            ".shared" => {
                let declared = self.declaration()?;
                let address = self.place_shared(&declared);
                self.symbols.insert(declared.name, address);
            }
            _ => return Err(format!("{word:?} is not understood at module scope")),
        }
        Ok(())
    }

    /// Device functions cannot be called here; the call is the error, not the definition.
    fn skip_function(&mut self) -> Parsed<()> {
        let mut at = self.at;
        while let Some(token) = self.tokens.get(at) {
            match token.text {
                ";" => {
                    self.at = at + 1;
                    return Ok(());
                }
                "{" => return self.skip_braces(),
                _ => at += 1,
            }
        }
        Err("function without an end".into())
    }

    fn place_shared(&mut self, declared: &Declared) -> u64 {
        if declared.unsized_array {
            self.dynamic_align = self.dynamic_align.max(declared.align);
            return DYNAMIC_SHARED;
        }
        let address = self.shared.next_multiple_of(declared.align);
        self.shared = address + declared.bytes.len();
        address as u64
    }

    fn declaration(&mut self) -> Parsed<Declared> {
        let (mut align, mut kind) = (None, None);
        let name = loop {
            let word = self.next()?;
            match word {
                ".align" => align = Some(self.number::<usize>()?),
                ".v2" | ".v4" | ".ptr" | ".attribute" => {
                    return Err(format!("{word} declarations are not supported"));
                }
                _ => match word.strip_prefix('.') {
                    Some(ty) => kind = Some(Type::parse(ty).ok_or(format!("type {word}"))?),
                    None => break word.to_string(),
                },
            }
        };
        let element = kind.ok_or("declaration without a type")?.bytes();
        let (mut count, mut unsized_array) = (1usize, false);
        while self.accept("[") {
            if self.accept("]") {
                unsized_array = true;
                continue;
            }
            count = count.checked_mul(self.number()?).ok_or("array too large")?;
            self.expect("]")?;
        }
        let align = align.unwrap_or(element).max(1);
        if !align.is_power_of_two() {
            return Err(format!("alignment {align}"));
        }
        let size = count.checked_mul(element).filter(|s| *s < 1 << 30).ok_or("array too large")?;
        let mut bytes = vec![0; size];
        if self.accept("=") {
            self.initialiser(&mut bytes, element)?;
        }
        self.expect(";")?;
        Ok(Declared { name, align, bytes, unsized_array })
    }

    fn initialiser(&mut self, bytes: &mut [u8], element: usize) -> Parsed<()> {
        let mut at = 0;
        loop {
            match self.peek() {
                ";" => return Ok(()),
                "{" | "}" | "," => self.at += 1,
                _ => {
                    let value: u64 = self.number()?;
                    let place = bytes.get_mut(at..at + element).ok_or("too many values")?;
                    place.copy_from_slice(&value.to_le_bytes()[..element]);
                    at += element;
                }
            }
        }
    }
}

/// The bits of a literal: decimal, `0x..`, `0f` + 8 hex digits (f32), `0d` + 16 (f64).
fn literal(word: &str) -> Option<u64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    let (negative, digits) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let prefixed = |prefixes: [&str; 2]| prefixes.iter().find_map(|p| digits.strip_prefix(p));
    let value = if let Some(bits) = prefixed(["0f", "0F"]).filter(|b| b.len() == 8) {
        u64::from_str_radix(bits, 16).ok()?
    } else if let Some(bits) = prefixed(["0d", "0D"]).filter(|b| b.len() == 16) {
        u64::from_str_radix(bits, 16).ok()?
    } else if let Some(hex) = prefixed(["0x", "0X"]) {
        u64::from_str_radix(hex, 16).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8).ok()?
    } else {
        digits.parse().ok()?
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Class, KernelText, Operand, Param, Place, Reg, Source};

    const KERNEL: &str = "
.version 8.8
.target sm_80
.address_size 64
.const .align 4 .b8 table[8] = {1, 0, 0, 0, 2, 0, 0, 0};
.extern .shared .align 128 .b8 smem[];
.visible .entry k(
    .param .u32 k_param_0,
    .param .align 8 .b8 k_param_1[24]
)
.maxntid 64, 2, 1
{
    .reg .pred %p<2>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    .shared .align 4 .b8 tile[100];
    .loc 1 7 3
    ld.param.u64 %rd1, [k_param_1+16];
    mov.u32 %r1, smem;
$L_a:
    @!%p1 bra $L_a;
    { .reg .b32 %r1; mov.b32 %r1, -3; }
    mov.f32 %r2, 0f3F800000;
    setp.lt.s32 %p0|%p1, %r1, %r2;
    ret;
}";

    fn kernel() -> KernelText {
        parse(KERNEL, &mut |_| 4096).unwrap().kernels.remove(0)
    }

    fn narrow(index: u32) -> Operand {
        Operand::Value(Source::Reg(Reg { class: Class::Narrow, index }))
    }

    #[test]
    fn parameters_are_laid_out_with_their_alignment() {
        let k = kernel();
        assert_eq!(k.params, [Param { offset: 0, size: 4 }, Param { offset: 8, size: 24 }]);
        let Operand::Address { base, offset, .. } = &k.statements[0].operands[1] else { panic!() };
        assert_eq!((*base, *offset), (Source::Imm(8), 16));
        assert_eq!(k.statements[0].place, Place { line: 18, source: (1, 7) });
    }

    #[test]
    fn dynamic_shared_memory_follows_the_static_part() {
        let k = kernel();
        assert_eq!(k.static_shared, 128);
        assert_eq!(k.statements[1].operands[1], Operand::Value(Source::Imm(128)));
    }

    #[test]
    fn inner_scope_shadows_a_register() {
        let k = kernel();
        assert_eq!(k.registers, [2, 5, 3]);
        assert_eq!(k.statements[3].operands[0], narrow(4));
        assert_eq!(k.statements[3].operands[1], Operand::Value(Source::Imm(-3i64 as u64)));
        assert_eq!(k.statements[4].operands[0], narrow(2));
        assert_eq!(k.statements[4].operands[1], Operand::Value(Source::Imm(0x3f80_0000)));
    }

    #[test]
    fn guards_labels_and_directives() {
        let k = kernel();
        let guard = k.statements[2].guard.unwrap();
        assert!(guard.negate && guard.reg == Reg { class: Class::Pred, index: 1 });
        assert_eq!(k.labels, [("$L_a".to_string(), 2)]);
        assert_eq!(k.max_threads, Some(128));
    }

    #[test]
    fn variables_carry_their_bytes() {
        let module = parse(KERNEL, &mut |_| 4096).unwrap();
        let table = &module.variables[0];
        assert_eq!(
            (table.bytes.as_slice(), table.address),
            (&[1u8, 0, 0, 0, 2, 0, 0, 0][..], 4096)
        );
    }

    #[test]
    fn a_broken_text_names_its_line() {
        let broken = KERNEL.replace("ret;\n}", "ret");
        assert!(parse(&broken, &mut |_| 0).unwrap_err().contains("PTX line 25"));
        let broken = KERNEL.replace(".maxntid", ".maxwhat");
        assert!(parse(&broken, &mut |_| 0).unwrap_err().contains("PTX line 11"));
    }
}
