//! Reads the pickles of untrusted weights files. It builds numbers, strings, tuples, lists and
//! dicts; [`super::rebuild`] handles globals, calls and persistent ids, and supports only a fixed
//! list of classes and functions. Nothing is imported or executed.
//!
//! The opcodes are those of Python's `pickletools`. All containers are in one arena and refer to
//! each other by index, so that nesting of any depth does not need a deep call stack.

use std::collections::HashMap;

use vlm_display::count;

use super::error::{Refusal, refuse};
use super::heap::{Global, Heap, StorageRef, Value};

/// Largest number of arguments of a call; the functions that weights need take at most seven.
const MAX_ARGUMENTS: usize = 16;

/// Largest number of operations. A tensor takes about forty. An operation of one byte can create a
/// list, which takes a hundred bytes here.
const MAX_OPERATIONS: usize = 5_000_000;

/// Reads a pickle up to its STOP opcode. Returns its value and the heap that the value refers to.
///
/// # Errors
/// The pickle uses an opcode or global that weights do not need, ends early, or pops from an empty
/// stack.
pub(super) fn unpickle(bytes: &[u8]) -> Result<(Value, Heap), Refusal> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        heap: Heap::default(),
    };
    for _ in 0..MAX_OPERATIONS {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            return Ok((machine.pop()?, machine.heap));
        }
        machine.execute(opcode)?;
    }
    refuse!(
        "the pickle has more than {MAX_OPERATIONS} operations, too many for weights; the rest was \
         not read"
    )
}

/// The state of the pickle's stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    heap: Heap,
}

impl<'a> Machine<'a> {
    fn execute(&mut self, opcode: u8) -> Result<(), Refusal> {
        match opcode {
            // PROTO and FRAME are not needed.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.string(opcode)?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b')' | b't' | 0x85 | 0x86 | 0x87 => self.tuple(opcode)?,
            b']' => {
                self.heap.sequences.push(Vec::new());
                self.stack.push(Value::List(self.heap.sequences.len() - 1));
            }
            b'}' => {
                let dict = self.heap.dict();
                self.stack.push(dict);
            }
            b'a' | b'e' => self.append(opcode)?,
            b's' | b'u' => self.set_items(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode)?,
            b'c' | 0x93 | b'R' | b'b' | b'Q' => self.object(opcode)?,
            other => {
                return refuse!(
                    "the pickle uses opcode 0x{other:02x} at byte {}, which weights do not need",
                    self.at - 1
                );
            }
        }
        Ok(())
    }

    /// NONE, NEWTRUE, NEWFALSE, BININT1, BININT2, BININT, LONG1, BINFLOAT.
    fn number(&mut self, opcode: u8) -> Result<(), Refusal> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'G' => {
                self.take(8)?;
                Value::Opaque
            }
            _ => {
                let size = usize::from(self.byte()?);
                let bytes = self.take(size)?;
                integer(bytes).map_or(Value::Opaque, Value::Int)
            }
        };
        self.stack.push(value);
        Ok(())
    }

    /// BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, SHORT_BINSTRING, BINSTRING.
    fn string(&mut self, opcode: u8) -> Result<(), Refusal> {
        let size = match opcode {
            0x8c | b'U' => u64::from(self.byte()?),
            0x8d => u64::from_le_bytes(self.array()?),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        let start = self.at;
        let bytes = self.take(usize::try_from(size).unwrap_or(usize::MAX))?;
        let Ok(text) = std::str::from_utf8(bytes) else {
            return refuse!("the string at byte {start} of the pickle is not UTF-8");
        };
        self.stack.push(Value::Str(text.into()));
        Ok(())
    }

    /// EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3.
    fn tuple(&mut self, opcode: u8) -> Result<(), Refusal> {
        let items = match opcode {
            b')' => Vec::new(),
            b't' => self.pop_to_mark()?,
            _ => {
                let count = usize::from(opcode - 0x84);
                let Some(start) =
                    self.stack.len().checked_sub(count).filter(|&s| s >= self.floor())
                else {
                    return self.empty_stack();
                };
                self.stack.split_off(start)
            }
        };
        let tuple = self.heap.tuple(items);
        self.stack.push(tuple);
        Ok(())
    }

    /// APPEND, APPENDS.
    fn append(&mut self, opcode: u8) -> Result<(), Refusal> {
        let items = if opcode == b'a' { vec![self.pop()?] } else { self.pop_to_mark()? };
        match self.top()? {
            Value::List(list) => {
                self.heap.sequences[list].extend(items);
                Ok(())
            }
            other => refuse!("the pickle appends to {}", other.describe()),
        }
    }

    /// SETITEM, SETITEMS.
    fn set_items(&mut self, opcode: u8) -> Result<(), Refusal> {
        let items = if opcode == b's' {
            let value = self.pop()?;
            vec![self.pop()?, value]
        } else {
            self.pop_to_mark()?
        };
        if items.len() % 2 != 0 {
            return refuse!("the pickle sets a key of a dict without a value");
        }
        let Value::Dict(dict) = self.top()? else {
            return refuse!("the pickle sets an item of {}", self.top()?.describe());
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.heap.dicts[dict].push((key, value));
        }
        Ok(())
    }

    /// BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET.
    fn memo(&mut self, opcode: u8) -> Result<(), Refusal> {
        let key = match opcode {
            b'q' | b'h' => u64::from(self.byte()?),
            0x94 => self.memo.len() as u64,
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        if matches!(opcode, b'h' | b'j') {
            let Some(value) = self.memo.get(&key) else {
                return refuse!("the pickle reads memo {key}, which it never wrote");
            };
            self.stack.push(value.clone());
        } else {
            let value = self.top()?;
            self.memo.insert(key, value);
        }
        Ok(())
    }

    /// GLOBAL, STACK_GLOBAL, REDUCE, BUILD, BINPERSID.
    fn object(&mut self, opcode: u8) -> Result<(), Refusal> {
        let value = match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Global(Global::named(&module, &name)?)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (&module, &name) else {
                    return refuse!(
                        "the pickle names a global by {} and {}",
                        module.describe(),
                        name.describe()
                    );
                };
                Value::Global(Global::named(module, name)?)
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let (Value::Global(function), Value::Tuple(arguments)) = (&function, &arguments)
                else {
                    return refuse!(
                        "the pickle calls {} with {}",
                        function.describe(),
                        arguments.describe()
                    );
                };
                let arguments = &self.heap.sequences[*arguments];
                if arguments.len() > MAX_ARGUMENTS {
                    return refuse!(
                        "the pickle calls {} with {}",
                        function.name(),
                        count(arguments.len(), "argument")
                    );
                }
                let arguments = arguments.clone();
                function.call(&arguments, &mut self.heap)?
            }
            // Attributes of an OrderedDict; PyTorch saves the versions of modules there
            // (`_metadata`).
            b'b' => {
                self.pop()?;
                return match self.top()? {
                    Value::Dict(_) => Ok(()),
                    other => refuse!("the pickle sets attributes of {}", other.describe()),
                };
            }
            _ => {
                let id = self.pop()?;
                StorageRef::from_persistent_id(&id, &mut self.heap)?
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return refuse!(
                "the pickle ends at byte {}, in the middle of a value",
                self.bytes.len()
            );
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The text up to the next newline, which is read too.
    fn line(&mut self) -> Result<String, Refusal> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        let text = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.take(length + 1)?;
        Ok(text)
    }

    /// Height of the stack at the last mark; values below it must not be popped.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, Refusal> {
        if self.stack.len() > self.floor()
            && let Some(value) = self.stack.pop()
        {
            return Ok(value);
        }
        self.empty_stack()
    }

    fn top(&self) -> Result<Value, Refusal> {
        match self.stack.last() {
            Some(value) if self.stack.len() > self.floor() => Ok(value.clone()),
            _ => self.empty_stack(),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, Refusal> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => {
                refuse!("the pickle pops to a mark at byte {}, but there is none", self.at - 1)
            }
        }
    }

    fn empty_stack<T>(&self) -> Result<T, Refusal> {
        refuse!("the pickle pops a value at byte {}, but there is none", self.at.saturating_sub(1))
    }
}

/// A little-endian two's complement integer of up to 8 bytes.
fn integer(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let negative = bytes.last().is_some_and(|&byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_integers_keep_their_sign() {
        assert_eq!(integer(&[]), Some(0));
        assert_eq!(integer(&[0xff]), Some(-1));
        assert_eq!(integer(&[0, 0, 0, 0, 1]), Some(1 << 32));
        assert_eq!(integer(&[0; 9]), None);
    }

    #[test]
    fn nesting_of_any_depth_does_not_overflow_the_stack() {
        let mut bytes = vec![b'N'];
        bytes.extend(std::iter::repeat_n(0x85, 2_000_000));
        bytes.push(b'.');
        assert!(matches!(unpickle(&bytes), Ok((Value::Tuple(_), _))));
    }

    #[test]
    fn a_pickle_with_too_many_operations_is_refused() {
        let message = unpickle(&[b']'; MAX_OPERATIONS + 1]).unwrap_err().0;
        assert!(message.contains("more than 5000000 operations"), "{message}");
    }

    #[test]
    fn broken_pickles_are_refused_with_the_reason() {
        let message = |bytes: &[u8]| unpickle(bytes).unwrap_err().0;
        assert_eq!(message(b""), "the pickle ends at byte 0, in the middle of a value");
        assert_eq!(
            message(b"X\xff\xff\xff\x7fab"),
            "the pickle ends at byte 7, in the middle of a value"
        );
        assert_eq!(message(b"."), "the pickle pops a value at byte 0, but there is none");
        assert_eq!(message(b"N(0"), "the pickle pops a value at byte 2, but there is none");
        assert_eq!(message(b"t"), "the pickle pops to a mark at byte 0, but there is none");
        assert_eq!(message(b"h\x05"), "the pickle reads memo 5, which it never wrote");
        assert_eq!(message(b"NNs"), "the pickle pops a value at byte 2, but there is none");
        assert_eq!(message(b"NNNs"), "the pickle sets an item of None");
        assert_eq!(
            message(b"i"),
            "the pickle uses opcode 0x69 at byte 0, which weights do not need"
        );
        assert_eq!(message(b"N)R"), "the pickle calls None with a tuple");
        assert_eq!(message(b"Nb"), "the pickle pops a value at byte 1, but there is none");
    }
}
