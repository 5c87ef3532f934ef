//! What are plan tokens signed with, where nobody said?

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "transfers.key";
const LEN: usize = 32;

/// A key of this replica's own: the one kept in `data_dir`, a new one otherwise. Without a directory
/// it is as good as the process: what it signed is worth nothing after a restart.
///
/// # Errors
/// Where the system gives no random bytes, or the key cannot be read or kept.
pub fn own(data_dir: Option<&Path>) -> io::Result<Vec<u8>> {
    let Some(path) = data_dir.map(|dir| dir.join(NAME)) else { return fresh() };
    match fs::read(&path) {
        Ok(key) if key.len() == LEN => Ok(key),
        Ok(_) => keep(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => keep(&path),
        Err(error) => Err(error),
    }
}

fn fresh() -> io::Result<Vec<u8>> {
    let mut key = vec![0; LEN];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(key)
}

fn keep(path: &Path) -> io::Result<Vec<u8>> {
    let key = fresh()?;
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_kept_where_there_is_a_directory_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = own(Some(dir.path())).unwrap();
        assert_eq!((own(Some(dir.path())).unwrap(), key.len()), (key.clone(), LEN));
        let mode = fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(own(None).unwrap(), key);
    }

    #[test]
    fn a_key_that_was_cut_short_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), b"short").unwrap();
        assert_eq!(own(Some(dir.path())).unwrap().len(), LEN);
    }
}
