//! Kernels: parameters, declarations, labels, instructions.

use std::collections::HashMap;

use super::{DYNAMIC_SHARED, Parsed, Parser, literal};
use crate::isa::{
    Class, Guard, KernelText, Operand, Param, Place, Reg, Source, Special, Statement, Type,
};

/// A kernel being parsed: names of all open scopes.
struct Body {
    text: KernelText,
    scopes: Vec<HashMap<String, Operand>>,
    source: (u32, u32),
}

impl<'a> Parser<'a> {
    /// A kernel after `.entry`.
    pub(super) fn kernel(&mut self) -> Parsed<()> {
        let name = self.next()?.to_string();
        let mut body = Body {
            text: KernelText { name, ..KernelText::default() },
            scopes: vec![HashMap::new()],
            source: (0, 0),
        };
        if self.accept("(") {
            self.params(&mut body)?;
        }
        loop {
            match self.next()? {
                "{" => break,
                ".maxntid" | ".reqntid" => {
                    body.text.max_threads = Some(self.triple()?.iter().product());
                }
                ".reqnctapercluster" => body.text.cluster = Some(self.triple()?),
                ".minnctapersm" => body.text.min_blocks = Some(self.number()?),
                ".maxnreg" | ".maxclusterrank" => {
                    self.number::<u32>()?;
                }
                ".explicitcluster" => {}
                other => return Err(format!("performance directive {other:?}")),
            }
        }
        let module_shared = self.shared;
        while !body.scopes.is_empty() {
            self.body_item(&mut body)?;
        }
        self.finish_kernel(body, module_shared)
    }

    fn finish_kernel(&mut self, mut body: Body, module_shared: usize) -> Parsed<()> {
        let dynamic = self.shared.next_multiple_of(self.dynamic_align);
        for statement in &mut body.text.statements {
            for operand in &mut statement.operands {
                resolve_dynamic(operand, dynamic as u64);
            }
        }
        body.text.static_shared = dynamic;
        self.shared = module_shared;
        self.module.kernels.push(body.text);
        Ok(())
    }

    fn triple(&mut self) -> Parsed<[u32; 3]> {
        let mut value = [self.number()?, 1, 1];
        for slot in &mut value[1..] {
            if self.accept(",") {
                *slot = self.number()?;
            }
        }
        Ok(value)
    }

    fn params(&mut self, body: &mut Body) -> Parsed<()> {
        let mut end = 0usize;
        while !self.accept(")") {
            self.accept(",");
            self.expect(".param")?;
            let (mut align, mut element) = (None, 0);
            let name = loop {
                let word = self.next()?;
                match word {
                    ".align" => align = Some(self.number::<usize>()?),
                    ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                    _ => match word.strip_prefix('.') {
                        Some(ty) => {
                            element = Type::parse(ty).ok_or(format!("type {word}"))?.bytes();
                        }
                        None => break word.to_string(),
                    },
                }
            };
            let mut size = element;
            if self.accept("[") {
                size = element.checked_mul(self.number()?).ok_or("parameter too large")?;
                self.expect("]")?;
            }
            let align = align.unwrap_or(element);
            if !align.is_power_of_two() || size > 32_764 {
                return Err(format!("parameter {name}: alignment {align}, {size} bytes"));
            }
            let offset = end.next_multiple_of(align);
            end = offset + size;
            body.text.params.push(Param { offset, size });
            body.define(name, Operand::Value(Source::Imm(offset as u64)));
        }
        Ok(())
    }

    fn body_item(&mut self, body: &mut Body) -> Parsed<()> {
        let line = self.tokens.get(self.at).map_or(0, |t| t.line);
        let word = self.next()?;
        match word {
            "{" => body.scopes.push(HashMap::new()),
            "}" => {
                body.scopes.pop();
            }
            ";" => {}
            ".loc" => {
                body.source = (self.number()?, self.number()?);
                self.skip_line();
            }
            ".file" => self.skip_line(),
            ".pragma" => {
                self.next()?;
                self.expect(";")?;
            }
            ".reg" => self.registers(body)?,
            ".shared" => {
                let declared = self.declaration()?;
                let address = self.place_shared(&declared);
                body.define(declared.name, Operand::Value(Source::Imm(address)));
            }
            ".local" => {
                let declared = self.declaration()?;
                let address = body.text.local.next_multiple_of(declared.align);
                body.text.local = address + declared.bytes.len();
                body.define(declared.name, Operand::Value(Source::Imm(address as u64)));
            }
            _ if self.peek() == ":" => {
                self.at += 1;
                self.label(word, body)?;
            }
            _ if word.starts_with('.') => return Err(format!("directive {word} in a kernel")),
            _ => {
                let statement = self.statement(word, line, body)?;
                body.text.statements.push(statement);
            }
        }
        Ok(())
    }

    /// Labels inside inline assembly are made unique by the compiler (`%=`), so one name space
    /// serves a kernel.
    fn label(&mut self, name: &str, body: &mut Body) -> Parsed<()> {
        if !self.accept(".branchtargets") {
            body.text.labels.push((name.to_string(), body.text.statements.len()));
            return Ok(());
        }
        let mut targets = Vec::new();
        loop {
            targets.push(self.next()?.to_string());
            match self.next()? {
                "," => {}
                ";" => break,
                other => return Err(format!("branch targets: {other:?}")),
            }
        }
        body.text.targets.push((name.to_string(), targets));
        Ok(())
    }

    fn registers(&mut self, body: &mut Body) -> Parsed<()> {
        let word = self.next()?;
        let kind = word.strip_prefix('.').and_then(Type::parse).ok_or(format!("type {word}"))?;
        let class = match (kind, kind.bytes()) {
            (Type::Pred, _) => Class::Pred,
            (_, 8) => Class::Wide,
            _ => Class::Narrow,
        };
        loop {
            let name = self.next()?.to_string();
            if self.accept("<") {
                let count: u32 = self.number()?;
                if count > 1 << 20 {
                    return Err(format!("{count} registers"));
                }
                self.expect(">")?;
                for i in 0..count {
                    body.new_register(format!("{name}{i}"), class);
                }
            } else {
                body.new_register(name, class);
            }
            match self.next()? {
                "," => {}
                ";" => return Ok(()),
                other => return Err(format!("register declaration: {other:?}")),
            }
        }
    }

    fn statement(&mut self, first: &'a str, line: u32, body: &Body) -> Parsed<Statement> {
        let (mut guard, mut mnemonic) = (None, first);
        if first == "@" {
            let negate = self.accept("!");
            let name = self.next()?;
            let Operand::Value(Source::Reg(reg)) = self.name(name, body) else {
                return Err(format!("{name} is not a predicate"));
            };
            if reg.class != Class::Pred {
                return Err(format!("{name} is not a predicate"));
            }
            guard = Some(Guard { reg, negate });
            mnemonic = self.next()?;
        }
        let mut parts = mnemonic.split('.');
        let opcode = parts.next().unwrap_or_default().to_string();
        let modifiers = parts.map(str::to_string).collect();
        let mut operands = Vec::new();
        while !self.accept(";") {
            self.accept(",");
            operands.push(self.operand(body)?);
        }
        let place = Place { line, source: body.source };
        Ok(Statement { opcode, modifiers, operands, guard, place })
    }

    fn operand(&mut self, body: &Body) -> Parsed<Operand> {
        match self.next()? {
            "{" => Ok(Operand::Vector(self.operands_until("}", body)?)),
            "(" => Ok(Operand::Vector(self.operands_until(")", body)?)),
            "[" => {
                let name = self.next()?;
                let Operand::Value(base) = self.name(name, body) else {
                    return Err(format!("address base {name:?}"));
                };
                let offset = match self.peek() {
                    "+" => {
                        self.at += 1;
                        self.number::<u64>()? as i64
                    }
                    word if word.starts_with('-') => self.number::<u64>()? as i64,
                    _ => 0,
                };
                self.accept(",");
                Ok(Operand::Address { base, offset, items: self.operands_until("]", body)? })
            }
            "!" => {
                let name = self.next()?;
                match self.name(name, body) {
                    Operand::Value(Source::Reg(reg)) => Ok(Operand::Not(reg)),
                    _ => Err(format!("operand !{name}")),
                }
            }
            "-" => Err("a sign in front of a register".into()),
            name => {
                let operand = self.name(name, body);
                if !self.accept("|") {
                    return Ok(operand);
                }
                let second = self.next()?;
                let half = |operand| match operand {
                    Operand::Value(Source::Reg(reg)) => Some(Some(reg)),
                    Operand::Sink => Some(None),
                    _ => None,
                };
                match (half(operand), half(self.name(second, body))) {
                    (Some(a), Some(b)) => Ok(Operand::Pair(a, b)),
                    _ => Err(format!("operand {name}|{second}")),
                }
            }
        }
    }

    fn operands_until(&mut self, close: &str, body: &Body) -> Parsed<Vec<Operand>> {
        let mut operands = Vec::new();
        while !self.accept(close) {
            self.accept(",");
            operands.push(self.operand(body)?);
        }
        Ok(operands)
    }

    fn name(&self, word: &str, body: &Body) -> Operand {
        if word == "_" {
            return Operand::Sink;
        }
        if let Some(found) = body.scopes.iter().rev().find_map(|scope| scope.get(word)) {
            return found.clone();
        }
        let value = Special::parse(word)
            .map(Source::Special)
            .or_else(|| self.symbols.get(word).copied().map(Source::Imm))
            .or_else(|| literal(word).map(Source::Imm));
        value.map_or_else(|| Operand::Label(word.to_string()), Operand::Value)
    }
}

impl Body {
    fn define(&mut self, name: String, value: Operand) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, value);
        }
    }

    fn new_register(&mut self, name: String, class: Class) {
        let count = &mut self.text.registers[class as usize];
        let reg = Reg { class, index: *count };
        *count += 1;
        self.define(name, Operand::Value(Source::Reg(reg)));
    }
}

fn resolve_dynamic(operand: &mut Operand, dynamic: u64) {
    match operand {
        Operand::Value(Source::Imm(value)) | Operand::Address { base: Source::Imm(value), .. }
            if *value == DYNAMIC_SHARED =>
        {
            *value = dynamic;
        }
        Operand::Vector(items) => items.iter_mut().for_each(|o| resolve_dynamic(o, dynamic)),
        _ => {}
    }
}
