//! Non-blocking messages between two processes.
#![allow(unsafe_code)]

use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::traits::Equivalence;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// MPI refused a call, or a message did not fit: its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the MPI library reports: {0}")]
pub struct MpiError(pub(crate) String);

/// Memory that MPI reads and writes while requests on it are open.
///
/// Its pages are the system's zeros until they are used.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    values: NonNull<T>,
    len: usize,
}

// SAFETY: it owns plain numbers; who may touch which of them is what `read` and `write` ask of
// their callers.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Buffer<T> {}

impl<T: Copy + Default> Buffer<T> {
    pub(crate) fn new(len: usize) -> Buffer<T> {
        let values = Box::leak(vec![T::default(); len].into_boxed_slice());
        Buffer { values: NonNull::from(values).cast(), len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Safety
    /// While the slice lives no open request receives into `range` and nobody writes it.
    pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the allocation, which lives as long as `self`; nobody writes it.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr().add(range.start), range.len()) }
    }

    /// # Safety
    /// While the slice lives no open request touches `range` and nobody else reads or writes it.
    #[allow(clippy::mut_from_ref, reason = "the caller vouches for it")]
    pub(crate) unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the allocation, which lives as long as `self`; nobody else touches it.
        unsafe {
            std::slice::from_raw_parts_mut(self.values.as_ptr().add(range.start), range.len())
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let values = std::ptr::slice_from_raw_parts_mut(self.values.as_ptr(), self.len);
        // SAFETY: it came from a box of this length. No request is open on it: each holds an `Arc`
        // of the buffer, and `Requests` leaks those of requests that it does not see the end of.
        drop(unsafe { Box::from_raw(values) });
    }
}

/// Open requests on one buffer, with the member that each is about.
pub(crate) struct Requests<T> {
    buffer: Arc<Buffer<T>>,
    handles: Vec<ffi::MPI_Request>,
    members: Vec<usize>,
    open: usize,
    done: Vec<c_int>,
}

// SAFETY: requests are handles that any thread may use while no other thread is inside MPI; all
// `Requests` live behind the lock that the `Wire` lives behind.
unsafe impl<T: Send> Send for Requests<T> {}

impl<T> Requests<T> {
    /// Room for `most` requests at a time.
    pub(crate) fn new(buffer: Arc<Buffer<T>>, most: usize) -> Requests<T> {
        Requests {
            buffer,
            handles: Vec::with_capacity(most),
            members: Vec::with_capacity(most),
            open: 0,
            done: vec![0; most],
        }
    }

    pub(crate) fn buffer(&self) -> &Arc<Buffer<T>> {
        &self.buffer
    }

    /// Whether all are done.
    pub(crate) fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// The first member whose request is open.
    pub(crate) fn first_open(&self) -> Option<usize> {
        // SAFETY: a constant that the library initialised before it was loaded.
        let null = unsafe { ffi::RSMPI_REQUEST_NULL };
        let open =
            |(handle, member): (&ffi::MPI_Request, &usize)| (*handle != null).then_some(*member);
        self.handles.iter().zip(&self.members).find_map(open)
    }

    fn push(&mut self, handle: ffi::MPI_Request, member: usize) {
        assert!(self.handles.len() < self.done.len(), "more requests than there is room for");
        self.handles.push(handle);
        self.members.push(member);
        self.open += 1;
    }

    /// Lets MPI work, and takes note of what is done.
    pub(crate) fn test(&mut self) -> Result<(), MpiError> {
        if self.open == 0 {
            return Ok(());
        }
        let mut completed: c_int = 0;
        // SAFETY: `handles` are requests that this type opened, as many as are said; `done` has
        // room for as many indices. The buffers behind them live: `self.buffer`.
        check(unsafe {
            ffi::MPI_Testsome(
                self.handles.len() as c_int,
                self.handles.as_mut_ptr(),
                &raw mut completed,
                self.done.as_mut_ptr(),
                ffi::RSMPI_STATUSES_IGNORE,
            )
        })?;
        self.open -= usize::try_from(completed).unwrap_or(0);
        if self.open == 0 {
            self.handles.clear();
            self.members.clear();
        }
        Ok(())
    }
}

impl<T> Drop for Requests<T> {
    fn drop(&mut self) {
        if self.open > 0 {
            // MPI may still write there: the memory has to outlive the process's last message.
            std::mem::forget(Arc::clone(&self.buffer));
        }
    }
}

/// A communicator of all processes.
pub(crate) struct Wire {
    handle: ffi::MPI_Comm,
    rank: usize,
    size: usize,
}

// SAFETY: the handle may be used by any thread while no other thread is inside MPI, which was
// initialised for serialised calls: the `Wire` lives behind a lock.
unsafe impl Send for Wire {}

impl Wire {
    /// A communicator of Helix's own over all processes, whose errors are returned.
    pub(crate) fn new(world: &impl AsRaw<Raw = ffi::MPI_Comm>) -> Result<Wire, MpiError> {
        let (mut handle, mut rank, mut size) = (world.as_raw(), 0, 0);
        // SAFETY: `world` is a communicator of an initialised library; the results go to locals.
        unsafe {
            check(ffi::MPI_Comm_dup(world.as_raw(), &raw mut handle))?;
            check(ffi::MPI_Comm_set_errhandler(handle, ffi::RSMPI_ERRORS_RETURN))?;
            check(ffi::MPI_Comm_rank(handle, &raw mut rank))?;
            check(ffi::MPI_Comm_size(handle, &raw mut size))?;
        }
        Ok(Wire { handle, rank: rank as usize, size: size as usize })
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The ranks of this host, this one among them, with the processors that each may use, of which
    /// this one may use `allowed`. All processes must call it.
    pub(crate) fn neighbours(
        &self,
        allowed: &[usize],
    ) -> Result<Vec<(usize, Vec<usize>)>, MpiError> {
        const WORDS: usize = 64;
        // A bit for each processor, and the rank.
        let mut mask = [0u64; WORDS + 1];
        for &processor in allowed.iter().filter(|&&processor| processor < WORDS * 64) {
            mask[processor / 64] |= 1 << (processor % 64);
        }
        mask[WORDS] = self.rank as u64;
        let (mut host, mut size) = (self.handle, 0);
        // SAFETY: the communicator is open, results go to locals, and there is a mask's room for
        // each process of the host.
        let masks = unsafe {
            let (kind, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
            check(ffi::MPI_Comm_split_type(self.handle, kind, 0, info, &raw mut host))?;
            check(ffi::MPI_Comm_size(host, &raw mut size))?;
            let mut masks = vec![mask; size as usize];
            let (words, word) = (mask.len() as c_int, u64::equivalent_datatype().as_raw());
            let all = masks.as_mut_ptr().cast();
            check(ffi::MPI_Allgather(mask.as_ptr().cast(), words, word, all, words, word, host))?;
            check(ffi::MPI_Comm_free(&raw mut host))?;
            masks
        };
        let neighbour = |mask: &[u64; WORDS + 1]| {
            let has = |i: &usize| mask[i / 64] >> (i % 64) & 1 == 1;
            (mask[WORDS] as usize, (0..WORDS * 64).filter(has).collect())
        };
        Ok(masks.iter().map(neighbour).collect())
    }

    /// Starts to send a range of the requests' buffer. An empty one needs no message.
    ///
    /// # Safety
    /// Until the request is done nobody writes the range.
    pub(crate) unsafe fn send<T: Equivalence + Copy + Default>(
        &mut self,
        requests: &mut Requests<T>,
        range: Range<usize>,
        (member, to): (usize, usize),
        tag: c_int,
    ) -> Result<(), MpiError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut handle = std::mem::MaybeUninit::uninit();
        // SAFETY: the caller vouches for the range; its memory lives until the request is done, as
        // `Requests` holds it.
        unsafe {
            let values = requests.buffer.read(range);
            check(ffi::MPI_Isend(
                values.as_ptr().cast::<c_void>(),
                count(values.len()),
                T::equivalent_datatype().as_raw(),
                to as c_int,
                tag,
                self.handle,
                handle.as_mut_ptr(),
            ))?;
            requests.push(handle.assume_init(), member);
        }
        Ok(())
    }

    /// Starts to receive into a range of the requests' buffer, all of it. An empty one is there.
    ///
    /// # Safety
    /// Until the request is done nobody reads or writes the range.
    pub(crate) unsafe fn receive<T: Equivalence + Copy + Default>(
        &mut self,
        requests: &mut Requests<T>,
        range: Range<usize>,
        (member, from): (usize, usize),
        tag: c_int,
    ) -> Result<(), MpiError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut handle = std::mem::MaybeUninit::uninit();
        // SAFETY: as in `send`; nobody else touches the range.
        unsafe {
            let values = requests.buffer.write(range);
            check(ffi::MPI_Irecv(
                values.as_mut_ptr().cast::<c_void>(),
                count(values.len()),
                T::equivalent_datatype().as_raw(),
                from as c_int,
                tag,
                self.handle,
                handle.as_mut_ptr(),
            ))?;
            requests.push(handle.assume_init(), member);
        }
        Ok(())
    }

    /// Whether a message of bytes with `tag` has come, from `from` or anybody: its sender and
    /// length.
    pub(crate) fn probe(
        &mut self,
        from: Option<usize>,
        tag: c_int,
    ) -> Result<Option<(usize, usize)>, MpiError> {
        let mut found = 0;
        let mut length = 0;
        let mut status = std::mem::MaybeUninit::<ffi::MPI_Status>::zeroed();
        // SAFETY: results go to locals; a status of zeros is a valid one.
        unsafe {
            let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |from| from as c_int);
            check(ffi::MPI_Iprobe(from, tag, self.handle, &raw mut found, status.as_mut_ptr()))?;
            if found == 0 {
                return Ok(None);
            }
            let bytes = u8::equivalent_datatype();
            check(ffi::MPI_Get_count(status.as_ptr(), bytes.as_raw(), &raw mut length))?;
            Ok(Some((status.assume_init().MPI_SOURCE as usize, length as usize)))
        }
    }
}

fn count(values: usize) -> c_int {
    c_int::try_from(values).expect("messages are cut before they reach 2^31 values")
}

/// What MPI returned, as a result.
fn check(code: c_int) -> Result<(), MpiError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the text has the room that the library asks for.
    let named = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    let text = match named == ffi::MPI_SUCCESS as c_int {
        true => String::from_utf8_lossy(&text[..length as usize]).into_owned(),
        false => format!("error {code}"),
    };
    Err(MpiError(text))
}
