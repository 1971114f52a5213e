//! Ed25519 keys: from PKCS#8 (`openssl genpkey -algorithm ed25519`) and OpenSSH (`ssh-keygen -t ed25519`) files, and new
//! ones.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use ed25519_dalek::Signer as _;
use ed25519_dalek::SigningKey;
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::pkcs8::DecodePublicKey as _;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::pkcs8::KeypairBytes;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use sha2::Digest as _;
use sha2::Sha256;

use crate::fs;

/// No key file is longer.
const CAP: u64 = 64 << 10;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// It is none of the forms that are read.
    #[error("`{}` is not an Ed25519 key: {problem}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        problem: String,
    },
    /// It is kept under a passphrase.
    #[error("the key in `{}` has a passphrase, and forge does not ask for passphrases", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// It is a public key, and a secret one is needed.
    #[error("`{}` is a public key; signing needs the secret key", path.display())]
    NotSecret {
        /// The file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("`{}` may be read or changed by others (mode {mode:04o}), so it is not used as a signing key", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// A key could not be put into words.
    #[error("the key cannot be written: {0}")]
    Encode(String),
}

/// What a key is called: the SHA-256 of its SubjectPublicKeyInfo in DER, in hexadecimal digits, as
/// `openssl pkey -pubin -outform DER | sha256sum` prints it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// Returns the 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 16 digits, for prose.
    pub fn short(&self) -> &str {
        &self.0[..16]
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The half of a key that tells whether a signature is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    id: KeyId,
}

impl PublicKey {
    fn new(key: VerifyingKey) -> Result<Self, KeyError> {
        let der = key
            .to_public_key_der()
            .map_err(|error| KeyError::Encode(error.to_string()))?;
        let sum: [u8; 32] = Sha256::digest(der.as_bytes()).into();
        // Hexadecimal digits of 32 bytes are the same whatever made them.
        let id = KeyId(blake3::Hash::from_bytes(sum).to_hex().to_string());
        Ok(Self { key, id })
    }

    /// Reads a public key: PEM (`-----BEGIN PUBLIC KEY-----`) or a line of OpenSSH (`ssh-ed25519 ...`). Of a secret key its
    /// public half is taken.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        match read(path)? {
            Read::Secret(key) => Ok(key.public),
            Read::Public(key) => Ok(key),
        }
    }

    /// Returns its name.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Returns the key as PEM.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.key
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| KeyError::Encode(error.to_string()))
    }

    /// Says whether a signature (64 bytes) is this key's over `message`. Strict: no other signature passes for the same.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        <[u8; 64]>::try_from(signature).is_ok_and(|bytes| {
            let signature = ed25519_dalek::Signature::from_bytes(&bytes);
            self.key.verify_strict(message, &signature).is_ok()
        })
    }
}

/// The half of a key that signs. Its memory is cleared when it is dropped.
pub struct SecretKey {
    key: SigningKey,
    public: PublicKey,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public.id)
    }
}

impl SecretKey {
    /// Makes a key of 32 secret bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = SigningKey::from_bytes(bytes);
        let public = PublicKey::new(key.verifying_key())?;
        Ok(Self { key, public })
    }

    /// Makes a new key.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| KeyError::Random(error.to_string()))?;
        let key = Self::from_bytes(&bytes);
        bytes.fill(0);
        key
    }

    /// Reads a secret key: PKCS#8 in PEM, or OpenSSH's form, without a passphrase.
    ///
    /// # Errors
    ///
    /// Among others [`KeyError::Exposed`] if the user owns the file and group or others have any access, as `ssh` does.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        match read(path)? {
            Read::Secret(key) => match fs::exposed_mode(path)? {
                Some(mode) => Err(KeyError::Exposed {
                    path: path.to_owned(),
                    mode,
                }),
                None => Ok(key),
            },
            Read::Public(_) => Err(KeyError::NotSecret { path: path.to_owned() }),
        }
    }

    /// Writes the key as PKCS#8 in PEM to a new file with mode 0600, and its public half beside it (`.pub`, mode 0644).
    /// Returns where the public half is.
    ///
    /// # Errors
    ///
    /// Of the kind `AlreadyExists` if either file is there: nothing is overwritten, ever.
    pub fn save_new(&self, path: &Path) -> Result<PathBuf, KeyError> {
        // Without the public key within: the form that every version of OpenSSL reads.
        let pair = KeypairBytes {
            secret_key: self.key.to_bytes(),
            public_key: None,
        };
        let pem = pair
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| KeyError::Encode(error.to_string()))?;
        let public = path.with_added_extension("pub");
        fs::write_new(path, pem.as_bytes(), 0o600)?;
        if let Err(error) = fs::write_new(&public, self.public.to_pem()?.as_bytes(), 0o644) {
            // Nobody has seen the secret half: a key without its public half would only be in the way.
            fs::remove_file(path).ok();
            return Err(error.into());
        }
        Ok(public)
    }

    /// Returns the public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs. The same message always gets the same signature.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

#[expect(clippy::large_enum_variant, reason = "made once, and taken apart at once")]
enum Read {
    Secret(SecretKey),
    Public(PublicKey),
}

fn read(path: &Path) -> Result<Read, KeyError> {
    let form = |problem: String| KeyError::Form {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read_small(path, CAP)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| form("it is no text".to_owned()))?;
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    match first.unwrap_or_default() {
        "-----BEGIN PRIVATE KEY-----" => {
            let key = SigningKey::from_pkcs8_pem(text.trim()).map_err(|error| form(error.to_string()))?;
            SecretKey::from_bytes(&key.to_bytes()).map(Read::Secret)
        }
        "-----BEGIN OPENSSH PRIVATE KEY-----" => {
            let key = ssh_key::PrivateKey::from_openssh(text.trim()).map_err(|error| form(error.to_string()))?;
            if key.is_encrypted() {
                return Err(KeyError::Encrypted { path: path.to_owned() });
            }
            let pair = key
                .key_data()
                .ed25519()
                .ok_or_else(|| form(format!("it is one for {}", key.algorithm())))?;
            SecretKey::from_bytes(&pair.private.to_bytes()).map(Read::Secret)
        }
        "-----BEGIN ENCRYPTED PRIVATE KEY-----" => Err(KeyError::Encrypted { path: path.to_owned() }),
        "-----BEGIN PUBLIC KEY-----" => {
            let key = VerifyingKey::from_public_key_pem(text.trim()).map_err(|error| form(error.to_string()))?;
            PublicKey::new(key).map(Read::Public)
        }
        line if line.starts_with("ssh-") || line.starts_with("ecdsa-") => {
            let key = ssh_key::PublicKey::from_openssh(line).map_err(|error| form(error.to_string()))?;
            let public = key
                .key_data()
                .ed25519()
                .ok_or_else(|| form(format!("it is one for {}", key.algorithm())))?;
            let key = VerifyingKey::from_bytes(&public.0).map_err(|error| form(error.to_string()))?;
            PublicKey::new(key).map(Read::Public)
        }
        line if line.starts_with("-----BEGIN ") => Err(form(format!(
            "it begins with `{}`, and PKCS#8 or OpenSSH's form is read",
            line.chars().take(60).collect::<String>()
        ))),
        _ => Err(form("it is neither PEM nor a line of OpenSSH".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first test of RFC 8032, 7.1.
    const SECRET: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
        0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];

    #[test]
    fn signatures_are_those_of_the_rfc() {
        let key = SecretKey::from_bytes(&SECRET).unwrap();
        let signature = key.sign(b"");
        let expected = concat!(
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155",
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        );
        let expected: Vec<u8> = (0..64)
            .map(|at| u8::from_str_radix(&expected[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        assert_eq!(signature.to_vec(), expected);
        assert!(key.public().verifies(b"", &signature));
        assert!(!key.public().verifies(b"a", &signature));
        assert!(!key.public().verifies(b"", &signature[..63]));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.public().verifies(b"", &flipped), "bit {bit}");
        }
    }

    #[test]
    fn a_new_key_is_written_once_and_only_for_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SecretKey::generate().unwrap();
        let public = key.save_new(&path).unwrap();
        assert_eq!(public, dir.path().join("key.pub"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&public)), (0o600, 0o644));
        assert_eq!(SecretKey::load(&path).unwrap().public(), key.public());
        assert_eq!(PublicKey::load(&public).unwrap(), *key.public());
        assert_eq!(PublicKey::load(&path).unwrap(), *key.public());
        assert!(matches!(SecretKey::load(&public), Err(KeyError::NotSecret { .. })));
        let before = std::fs::read(&path).unwrap();
        assert!(SecretKey::generate().unwrap().save_new(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        // The public half is in the way: nothing is left behind.
        let other = dir.path().join("other");
        std::fs::write(dir.path().join("other.pub"), "mine").unwrap();
        assert!(key.save_new(&other).is_err());
        assert!(!other.exists());
    }

    #[test]
    fn a_secret_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let public = SecretKey::generate().unwrap().save_new(&path).unwrap();
        let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for open in [0o640, 0o604, 0o660, 0o602, 0o601, 0o644] {
            set(open);
            let error = SecretKey::load(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Exposed { mode, .. } if mode == open),
                "{error}"
            );
        }
        for private in [0o600, 0o400] {
            set(private);
            assert!(SecretKey::load(&path).is_ok(), "{private:o}");
        }
        // What everyone may know needs no protection.
        assert!(PublicKey::load(&public).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for text in [
            "",
            "hello",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
            "-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----\n",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQ== me",
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(PublicKey::load(&path), Err(KeyError::Form { .. })), "{text}");
        }
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert!(matches!(SecretKey::load(&path), Err(KeyError::Form { .. })));
        std::fs::write(&path, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
        assert!(matches!(SecretKey::load(&path), Err(KeyError::Encrypted { .. })));
        assert!(matches!(
            SecretKey::load(Path::new("/dev/zero")),
            Err(KeyError::Path(_))
        ));
    }
}
