//! A device for tests: fixtures by name, buffers, launches.

// Each test program uses a part of it.
#![allow(dead_code)]

use gpu_sim::decode::Kernel;
use gpu_sim::global::DeviceMemory;
use gpu_sim::machine::{LaunchError, Options, Shape, Stats, launch};
use gpu_sim::parse::parse;

/// A device with memory and the kernels of one fixture.
pub struct Device {
    memory: DeviceMemory,
    kernels: Vec<Kernel>,
    pub options: Options,
}

/// A value that can stand in a buffer or a parameter.
pub trait Value: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from(bytes: &[u8]) -> Self;
}

macro_rules! value {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from(bytes: &[u8]) -> Self {
                <$ty>::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
value!(u8, u16, u32, u64, i32, f32);

impl Value for half::f16 {
    fn bytes(self) -> Vec<u8> {
        self.to_bits().bytes()
    }
    fn from(bytes: &[u8]) -> Self {
        half::f16::from_bits(<u16 as Value>::from(bytes))
    }
}

/// Text of a fixture.
pub fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

impl Device {
    pub fn new(name: &str) -> Device {
        Device::from_text(&fixture(name)).unwrap()
    }

    pub fn from_text(text: &str) -> Result<Device, String> {
        let memory = DeviceMemory::new(1 << 30, 0);
        let mut place = |bytes: &[u8]| {
            let address = memory.allocate(bytes.len()).unwrap();
            memory.find(address, 0).unwrap().0.write(0, bytes);
            address
        };
        let module = parse(text, &mut place)?;
        let kernels = module.kernels.iter().map(Kernel::decode).collect::<Result<_, _>>()?;
        Ok(Device { memory, kernels, options: Options::default() })
    }

    /// A buffer of given values.
    pub fn buffer<T: Value>(&self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
        let address = self.memory.allocate(bytes.len()).unwrap();
        self.memory.find(address, 0).unwrap().0.write(0, &bytes);
        address
    }

    /// A buffer that nothing has written.
    pub fn blank(&self, bytes: usize) -> u64 {
        self.memory.allocate(bytes).unwrap()
    }

    pub fn read<T: Value>(&self, address: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        let (allocation, offset) = self.memory.find(address, bytes.len()).unwrap();
        allocation.read(offset, &mut bytes);
        bytes.chunks_exact(size_of::<T>()).map(T::from).collect()
    }

    /// Launches with arguments given as their bytes.
    pub fn launch(&self, name: &str, shape: Shape, args: &[Vec<u8>]) -> Result<Stats, LaunchError> {
        let kernel =
            self.kernels.iter().find(|k| k.name == name).unwrap_or_else(|| panic!("{name}"));
        let mut params = vec![0; kernel.param_bytes()];
        assert_eq!(args.len(), kernel.params.len());
        for (param, arg) in kernel.params.iter().zip(args) {
            params[param.offset..param.offset + param.size].copy_from_slice(arg);
        }
        launch(kernel, &params, &self.memory.view(), shape, self.options)
    }
}

/// A launch of `blocks` by `threads`.
pub fn line(blocks: u32, threads: u32) -> Shape {
    Shape::new([blocks, 1, 1], [threads, 1, 1], 0)
}

/// Arguments as bytes.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::common::Value::bytes($value)),*] };
}

/// A repeatable sequence of small integers.
pub fn integers(count: usize, from: i32, to: i32) -> Vec<i32> {
    let mut state = 12345u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            from + (state >> 16) as i32 % (to - from + 1)
        })
        .collect()
}
