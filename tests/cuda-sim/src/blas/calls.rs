//! The calls of cuBLASLt, without pointers.

use std::sync::Arc;

use super::{Algorithm, Compute, Description, Element, Epilogue, Layout, Matmul, Preference, Scalar, Status};
use crate::{
    driver::{Driver, Held},
    error::Code,
    state::kinds,
    work::Work,
};

/// What the stand-in asks as workspace where it is given any: as small as the real library's smallest.
const WORKSPACE: u64 = 1024;

type Answer<T> = Result<T, Status>;

/// The number in the first bytes of an attribute, which has 4 or 8.
fn number(bytes: &[u8]) -> Answer<u64> {
    match *bytes {
        [a, b, c, d] => Ok(u64::from(u32::from_le_bytes([a, b, c, d]))),
        [a, b, c, d, e, f, g, h] => Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => Err(Status::InvalidValue),
    }
}

fn signed(bytes: &[u8]) -> Answer<i64> {
    let value = number(bytes)?;
    Ok(if bytes.len() == 4 { i64::from(value as u32 as i32) } else { value as i64 })
}

fn refuse<T>(state: &mut Held<'_>, status: Status, what: impl Into<String>) -> Answer<T> {
    state.refuse(Code::INVALID_VALUE, format!("cuBLASLt, {status:?}: {}", what.into()));
    Err(status)
}

macro_rules! of_kind {
    ($get:ident, $destroy:ident, $map:ident, $kind:ident, $of:ty, $name:literal) => {
        fn $get<'a>(state: &'a mut Held<'_>, handle: u64) -> Answer<&'a mut $of> {
            let id = u32::try_from(handle ^ kinds::$kind).ok();
            if !id.is_some_and(|id| state.blas.$map.contains_key(&id)) {
                return refuse(state, Status::InvalidValue, concat!("this is no live ", $name));
            }
            id.and_then(|id| state.blas.$map.get_mut(&id)).ok_or(Status::InvalidValue)
        }

        impl Driver {
            #[doc = concat!("Destroys a ", $name, ".")]
            pub fn $destroy(&self, handle: u64) -> Answer<()> {
                let mut state = self.held();
                $get(&mut state, handle)?;
                state.blas.$map.remove(&((handle ^ kinds::$kind) as u32));
                Ok(())
            }
        }
    };
}

of_kind!(description, destroy_description, descriptions, MATMUL, Description, "matmul description");
of_kind!(layout, destroy_layout, layouts, LAYOUT, Layout, "matrix layout");
of_kind!(preference, destroy_preference, preferences, PREFERENCE, Preference, "matmul preference");
of_kind!(library, destroy_library, libraries, BLAS, u64, "cuBLASLt handle");

impl Driver {
    /// `cublasLtCreate`, which needs a context.
    pub fn create_library(&self) -> Answer<u64> {
        let (mut state, context) = self.enter().map_err(|_| Status::NotInitialized)?;
        let id = state.handle();
        state.blas.libraries.insert(id, context);
        Ok(kinds::BLAS | u64::from(id))
    }

    /// `cublasLtMatmulDescCreate`.
    pub fn create_description(&self, compute: u32, scale: u32) -> Answer<u64> {
        let mut state = self.held();
        let Ok(compute) = Compute::of(compute) else {
            return refuse(&mut state, Status::NotSupported, format!("compute type {compute}"));
        };
        if scale != 0 {
            return refuse(
                &mut state,
                Status::NotSupported,
                format!("scale type {scale}: only f32 is known"),
            );
        }
        let id = state.handle();
        let description = Description {
            compute,
            transposed: [false; 2],
            epilogue: Epilogue::default(),
            bias: 0,
            bias_stride: 0,
            bias_type: None,
            device_scalars: false,
        };
        state.blas.descriptions.insert(id, description);
        Ok(kinds::MATMUL | u64::from(id))
    }

    /// `cublasLtMatmulDescSetAttribute`.
    pub fn set_description(&self, handle: u64, attribute: u32, bytes: &[u8]) -> Answer<()> {
        let mut state = self.held();
        let of = description(&mut state, handle)?;
        let value = number(bytes)?;
        let known = of.set(attribute, bytes);
        known.or_else(|status| refuse(&mut state, status, format!("matmul attribute {attribute} = {value}")))
    }

    /// `cublasLtMatrixLayoutCreate`: elements are numbered as `cudaDataType_t`.
    pub fn create_layout(&self, element: u32, rows: u64, columns: u64, leading: i64) -> Answer<u64> {
        let mut state = self.held();
        let Ok(element) = Element::of(element) else {
            return refuse(&mut state, Status::NotSupported, format!("elements of type {element}"));
        };
        let id = state.handle();
        let layout = Layout { element, rows, columns, leading, row_major: false, batch: 1, stride: 0 };
        state.blas.layouts.insert(id, layout);
        Ok(kinds::LAYOUT | u64::from(id))
    }

    /// `cublasLtMatrixLayoutSetAttribute`.
    pub fn set_layout(&self, handle: u64, attribute: u32, bytes: &[u8]) -> Answer<()> {
        let mut state = self.held();
        let of = layout(&mut state, handle)?;
        let value = number(bytes)?;
        let known = of.set(attribute, bytes);
        known.or_else(|status| refuse(&mut state, status, format!("layout attribute {attribute} = {value}")))
    }

    /// `cublasLtMatmulPreferenceCreate`.
    pub fn create_preference(&self) -> Answer<u64> {
        let mut state = self.held();
        let id = state.handle();
        state.blas.preferences.insert(id, Preference { workspace: 0, alignment: [256; 4] });
        Ok(kinds::PREFERENCE | u64::from(id))
    }

    /// `cublasLtMatmulPreferenceSetAttribute`.
    pub fn set_preference(&self, handle: u64, attribute: u32, bytes: &[u8]) -> Answer<()> {
        let mut state = self.held();
        let of = preference(&mut state, handle)?;
        let value = number(bytes)?;
        match attribute {
            1 => of.workspace = value,
            5..=8 if u32::try_from(value).is_ok_and(u32::is_power_of_two) => {
                of.alignment[attribute as usize - 5] = value as u32;
            }
            // What narrows the choice of an algorithm changes nothing here.
            0 | 3 | 4 | 9 | 11..=13 => {}
            _ => {
                return refuse(&mut state, Status::NotSupported, format!("preference {attribute} = {value}"));
            }
        }
        Ok(())
    }

    /// `cublasLtMatmulAlgoGetHeuristic`: the one algorithm that there is, if the matmul can be. Layouts are of A, B,
    /// C and D.
    pub fn heuristic(
        &self,
        handle: u64,
        matmul: u64,
        layouts: [u64; 4],
        preferred: u64,
    ) -> Answer<Algorithm> {
        let mut state = self.held();
        library(&mut state, handle)?;
        let description = description(&mut state, matmul)?.clone();
        let layouts = of_all(&mut state, layouts)?;
        let preference = *preference(&mut state, preferred)?;
        fits(&description, &layouts).or_else(|why| refuse(&mut state, Status::InvalidValue, why))?;
        let workspace = if preference.workspace >= WORKSPACE { WORKSPACE } else { 0 };
        Ok(Algorithm { workspace, alignment: preference.alignment })
    }

    /// Whether alpha and beta of this description lie on the device.
    pub fn scalars_on_device(&self, matmul: u64) -> Answer<bool> {
        Ok(description(&mut self.held(), matmul)?.device_scalars)
    }

    /// `cublasLtMatmul`. Layouts and addresses are of A, B, C and D; the workspace is an address and its bytes.
    #[allow(clippy::too_many_arguments, reason = "the real call has sixteen")]
    pub fn matmul(
        &self,
        handle: u64,
        matmul: u64,
        scalars: [Scalar; 2],
        layouts: [u64; 4],
        addresses: [u64; 4],
        algorithm: Option<Algorithm>,
        workspace: (u64, u64),
        stream: u64,
    ) -> Answer<()> {
        let (mut state, context) = self.enter().map_err(|_| Status::ExecutionFailed)?;
        library(&mut state, handle)?;
        let description = description(&mut state, matmul)?.clone();
        let layouts = of_all(&mut state, layouts)?;
        fits(&description, &layouts).or_else(|why| refuse(&mut state, Status::InvalidValue, why))?;
        let mut needed = 0;
        for (index, address) in addresses.iter().enumerate() {
            let promised = algorithm.map_or(0, |of| of.alignment[index]);
            let at_least = promised.max(layouts[index].element.size() as u32);
            if !address.is_multiple_of(u64::from(at_least)) {
                let name = ["A", "B", "C", "D"][index];
                let why = format!(
                    "{name} at {address:#x} is not aligned to the {at_least} bytes that were promised"
                );
                return refuse(&mut state, Status::InvalidValue, why);
            }
        }
        if let Some(algorithm) = algorithm {
            needed = algorithm.workspace;
            if workspace.1 < needed || (needed > 0 && workspace.0 == 0) {
                let why = format!("a workspace of {} bytes, where the algorithm needs {needed}", workspace.1);
                return refuse(&mut state, Status::InvalidValue, why);
            }
        }
        let stream = state.stream_of(context, stream).map_err(|_| Status::InvalidValue)?;
        let [alpha, beta] = scalars;
        let workspace = (workspace.0, needed);
        let work = Matmul { description, alpha, beta, layouts, addresses, workspace };
        state.may_be_lost().map_err(|_| Status::ExecutionFailed)?;
        if state.streams[&stream].capture.is_none() {
            state.counters.matmuls += 1;
        }
        state.submit(stream, Work::Matmul(Arc::new(work)), Vec::new()).map_err(|_| Status::ExecutionFailed)
    }
}

impl Description {
    /// Sets an attribute of `cublasLtMatmulDescAttributes_t`.
    fn set(&mut self, attribute: u32, bytes: &[u8]) -> Answer<()> {
        let value = number(bytes)?;
        match attribute {
            0 => self.compute = Compute::of(value as u32)?,
            2 if value <= 1 => self.device_scalars = value == 1,
            3 if value <= 1 => self.transposed[0] = value == 1,
            4 if value <= 1 => self.transposed[1] = value == 1,
            // C as it is.
            5 if value == 0 => {}
            7 => self.epilogue = Epilogue::of(value as u32)?,
            8 => self.bias = value,
            10 => self.bias_stride = signed(bytes)?,
            26 => self.bias_type = Some(Element::of(value as u32)?),
            _ => return Err(Status::NotSupported),
        }
        Ok(())
    }
}

impl Layout {
    /// Sets an attribute of `cublasLtMatrixLayoutAttribute_t`.
    fn set(&mut self, attribute: u32, bytes: &[u8]) -> Answer<()> {
        let value = number(bytes)?;
        match attribute {
            0 => self.element = Element::of(value as u32)?,
            1 if value <= 1 => self.row_major = value == 1,
            2 => self.rows = value,
            3 => self.columns = value,
            4 => self.leading = signed(bytes)?,
            5 => self.batch = i32::try_from(value).map_err(|_| Status::InvalidValue)?,
            6 => self.stride = signed(bytes)?,
            _ => return Err(Status::NotSupported),
        }
        Ok(())
    }
}

fn of_all(state: &mut Held<'_>, handles: [u64; 4]) -> Answer<[Layout; 4]> {
    let [a, b, c, d] = handles;
    Ok([*layout(state, a)?, *layout(state, b)?, *layout(state, c)?, *layout(state, d)?])
}

/// Whether shapes, types and leading dimensions fit each other.
fn fits(of: &Description, layouts: &[Layout; 4]) -> Result<(), String> {
    let [a, b, c, d] = layouts;
    let shape = |layout: &Layout, transposed: bool| {
        if transposed { (layout.columns, layout.rows) } else { (layout.rows, layout.columns) }
    };
    let ((m, k), (inner, n)) = (shape(a, of.transposed[0]), shape(b, of.transposed[1]));
    if k != inner || (d.rows, d.columns) != (m, n) || (c.rows, c.columns) != (m, n) {
        return Err(format!(
            "shapes do not fit: A is {m} x {k}, B {inner} x {n}, C {} x {}, D {} x {}",
            c.rows, c.columns, d.rows, d.columns
        ));
    }
    if m == 0 || n == 0 || k == 0 {
        return Err(format!("an empty matmul, {m} x {n} x {k}"));
    }
    for (name, layout) in ["A", "B", "C", "D"].into_iter().zip(layouts) {
        let (_, along) = layout.lines();
        if layout.leading < along as i64 {
            return Err(format!("the leading dimension of {name}, {}, is less than {along}", layout.leading));
        }
        if layout.batch != d.batch || layout.batch < 1 {
            return Err(format!("{name} is a batch of {}, D one of {}", layout.batch, d.batch));
        }
    }
    if a.element != b.element || c.element != d.element {
        return Err(format!(
            "elements {:?} x {:?}, {:?} to {:?}",
            a.element, b.element, c.element, d.element
        ));
    }
    if a.element != d.element && (a.element == Element::F32 || d.element != Element::F32) {
        return Err(format!("elements {:?} do not make {:?}", a.element, d.element));
    }
    if of.compute != Compute::F32 && a.element != Element::F32 {
        return Err(format!("{:?} is for f32, not for {:?}", of.compute, a.element));
    }
    if of.epilogue.bias && of.bias == 0 {
        return Err("a bias without an address".into());
    }
    if of.epilogue.bias && of.bias_type.is_some_and(|t| t != d.element && t != Element::F32) {
        return Err("a bias of a type that does not fit D".into());
    }
    if of.epilogue != Epilogue::default() && d.row_major {
        return Err("an epilogue needs D in columns".into());
    }
    Ok(())
}
