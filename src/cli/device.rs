//! Where and how networks run: `--device`, `--precision`, `--batch` and `--gpu-memory`.

use super::Global;
use crate::backend::{Backend, Oracle, Precision, Several};
use crate::cpu::CpuBackend;
use crate::cuda::{self, CudaBackend};
use crate::error::{Context, Error, Result};
use std::str::FromStr;

/// Where networks run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The best there is, said aloud.
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs.
    Cuda(Gpus),
    /// Every op from its definition, slow: what the others are judged by.
    Reference,
}

/// Which GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// All the driver has.
    All,
    /// By ordinal, in the driver's order.
    Some(Vec<usize>),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "reference" => Ok(Device::Reference),
            None if text == "cuda" => Ok(Device::Cuda(Gpus::Some(vec![0]))),
            Some(("cuda", "all")) => Ok(Device::Cuda(Gpus::All)),
            Some(("cuda", list)) => {
                let mut ordinals = Vec::new();
                for part in list.split(',') {
                    let ordinal = part.parse().map_err(|_| {
                        format!("{part:?} is not a device number; cuda:0, cuda:0,1 or cuda:all")
                    })?;
                    if ordinals.contains(&ordinal) {
                        return Err(format!("device {ordinal} is named twice"));
                    }
                    ordinals.push(ordinal);
                }
                Ok(Device::Cuda(Gpus::Some(ordinals)))
            }
            _ => Err("expected auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all".into()),
        }
    }
}

impl Device {
    /// Opens the backend; `auto` says what it chose. `gpu_memory` bounds the bytes each GPU gives.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when a GPU is asked for and cannot be used: there is no fall-back.
    pub fn open(&self, global: &Global, gpu_memory: Option<usize>) -> Result<Box<dyn Backend>> {
        self.open_for(Precision::default(), global, gpu_memory)
    }

    /// As [`Device::open`], to compute with other numbers.
    ///
    /// # Errors
    /// As [`Device::open`]; [`crate::Kind::Unsupported`] where the device does not compute with them.
    pub fn open_for(
        &self,
        precision: Precision,
        global: &Global,
        gpu_memory: Option<usize>,
    ) -> Result<Box<dyn Backend>> {
        let cpu = || -> Result<Box<dyn Backend>> {
            let backend = CpuBackend::new(global.threads(), None)?;
            Ok(Box::new(backend.with_precision(precision)?))
        };
        match self {
            Device::Cpu => cpu(),
            Device::Reference => Ok(Box::new(Oracle(precision.rounding()))),
            Device::Auto => {
                let backend = cpu()?;
                let gpu = cuda::driver().is_ok_and(|driver| !driver.devices.is_empty());
                let hint = if gpu { "; there is a GPU: --device cuda tries it" } else { "" };
                global.say(&format!("device: {} (auto{hint})", backend.name()));
                Ok(backend)
            }
            Device::Cuda(_) if precision != Precision::F16 => Err(Error::unsupported(format!(
                "--precision {precision}: GPUs compute with fp16 alone; --device cpu has all"
            ))),
            Device::Cuda(gpus) => {
                let mut backends: Vec<Box<dyn Backend>> = Vec::new();
                for ordinal in gpus.ordinals()? {
                    let backend =
                        CudaBackend::new(ordinal).context(|| format!("--device cuda:{ordinal}"))?;
                    let backend = match gpu_memory {
                        Some(bytes) => backend.with_memory_limit(bytes)?,
                        None => backend,
                    };
                    backends.push(Box::new(backend));
                }
                match backends.len() {
                    1 => Ok(backends.remove(0)),
                    _ => Ok(Box::new(Several::new(backends)?)),
                }
            }
        }
    }
}

impl Gpus {
    /// The ordinals there are.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] without a driver or a device.
    pub fn ordinals(&self) -> Result<Vec<usize>> {
        match self {
            Gpus::Some(ordinals) => Ok(ordinals.clone()),
            Gpus::All => match cuda::driver() {
                Err(why) => Err(Error::device(why).context("--device cuda:all")),
                Ok(driver) if driver.devices.is_empty() => {
                    Err(Error::device("--device cuda:all: the driver has no device"))
                }
                Ok(driver) => Ok((0..driver.devices.len()).collect()),
            },
        }
    }
}

/// On what machine networks run.
#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where networks run: auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all
    #[arg(long, default_value = "auto")]
    pub device: Device,
    /// Numbers of weights and activations, on a CPU: fp16, bf16 (faster where the processor
    /// multiplies it, 8 times the rounding error) or f32 (FP16 weights, nothing else rounded)
    #[arg(long, default_value = "fp16", value_name = "KIND")]
    pub precision: Precision,
    /// Most memory to use on each GPU, such as 6GiB; batches shrink to fit [default: all there is]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub gpu_memory: Option<usize>,
}

impl DeviceArgs {
    /// Opens the backend within the bounds given.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open(&self, global: &Global) -> Result<Box<dyn Backend>> {
        self.device.open_for(self.precision, global, self.gpu_memory)
    }
}

/// How networks run on many tiles.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    machine: DeviceArgs,
    /// Tiles in one batch; results do not depend on it
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch: u16,
}

impl RunArgs {
    /// What the command line gives when it names a device only.
    pub fn on(device: Device) -> RunArgs {
        let machine = DeviceArgs { device, precision: Precision::default(), gpu_memory: None };
        RunArgs { machine, batch: 16 }
    }

    /// As [`DeviceArgs::open`].
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open(&self, global: &Global) -> Result<Box<dyn Backend>> {
        self.machine.open(global)
    }
}

/// Reads a number of bytes: `6GiB`, `512 MiB`, `2GB`, `1000000`.
///
/// # Errors
/// In words, when it is none.
pub fn bytes(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is not a size such as 6GiB or 512MiB");
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024f64.powi(2),
        "gib" | "g" => 1024f64.powi(3),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(wrong()),
    };
    let size = number.parse::<f64>().map_err(|_| wrong())? * scale;
    if (1.0..=isize::MAX as f64).contains(&size) { Ok(size as usize) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        let read = |text: &str| text.parse::<Device>();
        assert_eq!(read("cuda"), Ok(Device::Cuda(Gpus::Some(vec![0]))));
        assert_eq!(read("cuda:3"), Ok(Device::Cuda(Gpus::Some(vec![3]))));
        assert_eq!(read("cuda:1,0"), Ok(Device::Cuda(Gpus::Some(vec![1, 0]))));
        assert_eq!(read("cuda:all"), Ok(Device::Cuda(Gpus::All)));
        for wrong in ["cuda:", "cuda:-1", "cuda:0,", "cuda:0,0", "gpu", "cpu:0", "cuda:0 1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_with_units() {
        assert_eq!(bytes("6GiB"), Ok(6 << 30));
        assert_eq!(bytes("1.5 MiB"), Ok(3 << 19));
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "GiB", "0", "-1", "6 TB", "1e400", "nan", "1.2.3"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
