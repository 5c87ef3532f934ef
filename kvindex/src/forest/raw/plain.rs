//! Hashes as plain words: compared many at a time, and fetched before they are needed.

/// Asks the processor to fetch what lies at `at`.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about memory that the reference shows to be there.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// How many leading words two slices have in common.
#[inline]
pub(crate) fn common(a: &[u64], b: &[u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { common_avx2(a, b) };
    }
    common_anywhere(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn common_avx2(a: &[u64], b: &[u64]) -> usize {
    common_anywhere(a, b)
}

/// Compares 32 at a time without a branch, which the compiler makes vector code of. A plain loop: a
/// closure would be compiled for any processor and halve the speed.
#[inline(always)]
fn common_anywhere(a: &[u64], b: &[u64]) -> usize {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut i = 0;
    while i + 32 <= n {
        let (x, y) = (&a[i..i + 32], &b[i..i + 32]);
        let mut differs = 0;
        for j in 0..32 {
            differs |= x[j] ^ y[j];
        }
        if differs != 0 {
            break;
        }
        i += 32;
    }
    while i < n && a[i] == b[i] {
        i += 1;
    }
    i
}

/// Hashes as the numbers they are.
pub(crate) trait Hash64: Copy {}
impl Hash64 for kvproto::LocalHash {}
impl Hash64 for kvproto::SeqHash {}
impl Hash64 for kvproto::EngineHash {}

/// The numbers of hashes.
#[inline]
pub(crate) fn words<T: Hash64>(hashes: &[T]) -> &[u64] {
    const { assert!(size_of::<T>() == size_of::<u64>() && align_of::<T>() == align_of::<u64>()) };
    // SAFETY: the types that are `Hash64` are transparent wrappers of a u64.
    unsafe { std::slice::from_raw_parts(hashes.as_ptr().cast(), hashes.len()) }
}
