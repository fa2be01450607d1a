//! The AWS of the tests: KMS behind real names and real TLS, and its clients.

use crate::lab::{Lab, servers_dir};
use crate::machine::Machine;
use crate::process::{Done, Process};
use crate::servers::fill;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the certificate names: the regions there are.
const NAMES: [&str; 15] = [
    "kms.us-east-1.amazonaws.com",
    "kms.eu-central-1.amazonaws.com",
    "kms.us-east-2.amazonaws.com",
    "kms.eu-west-1.amazonaws.com",
    "kms.eu-west-2.amazonaws.com",
    "kms.ap-southeast-1.amazonaws.com",
    "kms.ca-central-1.amazonaws.com",
    "kms.sa-east-1.amazonaws.com",
    "kms.eu-west-3.amazonaws.com",
    "kms.eu-south-1.amazonaws.com",
    "kms.ap-south-1.amazonaws.com",
    "kms.ap-east-1.amazonaws.com",
    "sqs.us-east-1.amazonaws.com",
    // What the AWS CLI calls the one before.
    "queue.amazonaws.com",
    "sts.us-east-1.amazonaws.com",
];

/// KMS, SQS and STS, running in the internet.
#[derive(Debug)]
pub struct Aws {
    /// The service itself; its log tells what it answered and refused.
    pub service: Process,
    /// TLS in front of it.
    pub nginx: Process,
    /// The certificate of the CA that signed for its names.
    pub ca: String,
    /// Whom it believes attestation documents: the folder of an authority.
    pub authority: PathBuf,
    venv: PathBuf,
    scripts: PathBuf,
}

/// Who asks, and for which region. As it comes: an enclave of the image `aa…`, in us-east-1.
#[derive(Debug, Clone)]
pub struct Client<'a> {
    /// Its access key and secret, if it has any.
    pub credentials: Option<(&'a str, &'a str)>,
    /// What goes with the credentials of a session.
    pub token: Option<&'a str>,
    /// The region it asks.
    pub region: &'a str,
    /// Its image's PCR0, in hex.
    pub pcr0: String,
    /// Whom its secure module belongs to.
    pub authority: &'a Path,
    /// The certificate of the CA that it believes.
    pub ca: &'a str,
    /// Whether it asks the parent's metadata service for credentials.
    pub has_imds: bool,
}

impl Client<'_> {
    /// The role that a key policy names.
    pub const ENCLAVE: (&'static str, &'static str) = ("AKIATESTENCLAVE00001", "enclave-secret");
    /// The role that administers keys.
    pub const ADMIN: (&'static str, &'static str) = ("AKIATESTADMIN0000001", "admin-secret");
    /// A session of the role that a key policy names, and one that has expired: access key, secret
    /// and token.
    pub const SESSION: [&'static str; 3] = ["ASIATESTSESSION00001", "session-secret", "token-1"];
    /// See [`Client::SESSION`].
    pub const EXPIRED: [&'static str; 3] = ["ASIATESTEXPIRED00001", "expired-secret", "token-2"];
    /// A role that no policy names.
    pub const STRANGER: (&'static str, &'static str) = ("AKIATESTSTRANGER0001", "stranger-secret");

    fn environment(&self) -> Vec<String> {
        let mut set = vec![
            format!("AWS_REGION={}", self.region),
            format!("AWS_DEFAULT_REGION={}", self.region),
            format!("SSL_CERT_FILE={}", self.ca),
            format!("AWS_CA_BUNDLE={}", self.ca),
            format!("AWS_EC2_METADATA_DISABLED={}", !self.has_imds),
            format!("TEST_AUTHORITY={}", self.authority.display()),
            format!("TEST_PCR0={}", self.pcr0),
        ];
        if let Some((id, secret)) = self.credentials {
            set.push(format!("AWS_ACCESS_KEY_ID={id}"));
            set.push(format!("AWS_SECRET_ACCESS_KEY={secret}"));
        }
        set.extend(self.token.map(|token| format!("AWS_SESSION_TOKEN={token}")));
        set
    }

    /// Starts a program with this client's environment, and more of it.
    pub fn spawn(&self, machine: &Machine, more: &[&str], command: &[&str]) -> Process {
        let set = self.environment();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        machine.spawn("env", &[&set[..], more, command].concat())
    }

    /// Runs a program with this client's environment.
    #[track_caller]
    pub fn run(&self, machine: &Machine, program: &str, arguments: &[&str]) -> Done {
        let set = self.environment();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        machine.run("env", &[&set[..], &[program], arguments].concat())
    }
}

impl Aws {
    /// A client as it comes.
    pub fn client(&self) -> Client<'_> {
        Client {
            credentials: Some(Client::ENCLAVE),
            token: None,
            region: "us-east-1",
            pcr0: "aa".repeat(48),
            authority: &self.authority,
            ca: &self.ca,
            has_imds: false,
        }
    }

    /// Who administers keys.
    pub fn admin(&self) -> Client<'_> {
        Client {
            credentials: Some(Client::ADMIN),
            ..self.client()
        }
    }

    /// boto3, which is not ours; prints JSON.
    #[track_caller]
    pub fn boto3(
        &self,
        client: &Client<'_>,
        machine: &Machine,
        arguments: &[&str],
    ) -> serde_json::Value {
        let script = self.scripts.join("control.py");
        let arguments = [&["-B", script.to_str().unwrap()], arguments].concat();
        let said = client
            .run(machine, &in_venv(&self.venv, "python"), &arguments)
            .ok();
        serde_json::from_str(&said).unwrap()
    }

    /// The AWS CLI, which is not ours either.
    #[track_caller]
    pub fn cli(&self, client: &Client<'_>, machine: &Machine, arguments: &[&str]) -> Done {
        let arguments = [arguments, &["--output", "json"]].concat();
        client.run(machine, &in_venv(&self.venv, "aws"), &arguments)
    }

    /// Makes a key that anybody of the account may use, as whoever this is.
    ///
    /// # Panics
    /// When it is refused.
    pub fn open_key(&self, client: &Client<'_>, lab: &Lab) -> String {
        let statement = json!({
            "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::123456789012:root" },
            "Action": "kms:*", "Resource": "*",
        });
        let policy = json!({ "Version": "2012-10-17", "Statement": [statement] });
        self.key_with(client, lab, &policy.to_string())
    }

    /// Makes a key with the policy that `kms policy` prints for the image of [`Aws::client`].
    ///
    /// # Panics
    /// When it is refused.
    pub fn sealed_key(&self, region: &str, lab: &Lab) -> String {
        let policy = lab.key_policy(&self.client().pcr0);
        let admin = Client {
            region,
            ..self.admin()
        };
        self.key_with(&admin, lab, &policy)
    }

    fn key_with(&self, client: &Client<'_>, lab: &Lab, policy: &str) -> String {
        let file = lab.dir().join("policy.json");
        fs::write(&file, policy).unwrap();
        let made = self.boto3(client, &lab.parent, &["set-up", file.to_str().unwrap()]);
        let key = made["key"].as_str();
        key.unwrap_or_else(|| panic!("{made}")).to_owned()
    }
}

impl Lab {
    /// The policy that `kms policy` prints for an image with this PCR0, in hex.
    ///
    /// # Panics
    /// When it prints none.
    pub fn key_policy(&self, pcr0: &str) -> String {
        let pcrs = self.dir().join("pcr-values.json");
        let image = json!({ "PCR0": pcr0, "PCR1": "01".repeat(48) });
        fs::write(&pcrs, image.to_string()).unwrap();
        let role = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let (enclave, admin) = (role("enclave"), role("admin"));
        let arguments = ["kms", "policy", "--pcrs", pcrs.to_str().unwrap()];
        let who = ["--principal", &enclave, "--admin", &admin];
        let app = self.binary("enclave-app");
        self.parent.run(&app, &[&arguments[..], &who].concat()).ok()
    }

    /// Makes an authority for secure modules in a folder.
    pub fn authority(&self, dir: &Path) {
        let make = self.binary("make-authority");
        self.internet.run(&make, &[dir.to_str().unwrap()]).ok();
    }

    /// Starts MiniStack as the parent's metadata service, which gives credentials of a session of the
    /// role that key policies name, or of one whose time is over.
    ///
    /// # Panics
    /// When its Python environment cannot be made.
    pub fn imds(&self, aws: &Aws, session: [&str; 3]) -> Process {
        let venv = venv(&aws.scripts, "ministack");
        let address = "169.254.169.254";
        let own = format!("{address}/32");
        self.parent
            .run("ip", &["addr", "add", &own, "dev", "lo"])
            .ok();
        let script = aws.scripts.join("imds.py");
        // It leaves a file with its process id among the temporary ones.
        let folder = format!("TMPDIR={}", self.parent.dir().display());
        let python = in_venv(&venv, "python");
        let line = [&folder, &python, "-B", script.to_str().unwrap(), address];
        let process = self.parent.spawn("env", &[&line[..], &session].concat());
        self.parent.accepting(process, "169.254.169.254:80").process
    }

    /// Starts LocalStack as the KMS of eu-central-1, behind the TLS of [`Lab::aws`]; nothing where
    /// this machine's Python is too old for it.
    ///
    /// # Panics
    /// When its Python environment cannot be made otherwise.
    pub fn localstack(&self, aws: &Aws) -> Option<Process> {
        let python = in_venv(&find_venv(&aws.scripts, "localstack")?, "python");
        let dir = self.internet.dir().display();
        let line = [
            // Whatever it finds of containers here.
            "OVERRIDE_IN_DOCKER=0",
            &format!("FILESYSTEM_ROOT={dir}/localstack"),
            "GATEWAY_LISTEN=127.0.0.1:4566",
            "SERVICES=kms",
            // Nobody to ask out there: neither names, nor certificates, nor who uses it.
            "DNS_ADDRESS=0",
            "SKIP_SSL_CERT_DOWNLOAD=1",
            "DISABLE_EVENTS=1",
            &python,
            "-B",
            "-m",
            "localstack.runtime.main",
        ];
        let mut process = self.internet.spawn("env", &line);
        // It accepts connections before.
        process.wait_log("Ready.", 120);
        Some(process)
    }

    /// Starts the TLS in front of [`Lab::aws`], for the first time or again.
    pub fn aws_nginx(&self) -> Process {
        let conf = fill(self, "aws/nginx.conf", &self.internet.dir().join("aws"));
        let nginx = self.internet.spawn("nginx", &["-e", "stderr", "-c", &conf]);
        self.internet.accepting(nginx, "192.0.2.3:443").process
    }

    /// Starts the AWS of the tests in the internet; [`Lab::unbound`] knows its names.
    ///
    /// # Panics
    /// When its Python environment cannot be made.
    pub fn aws(&self) -> Aws {
        let scripts = servers_dir().join("aws");
        let venv = venv(&scripts, "");
        let dir = self.internet.dir().join("aws");
        let authority = dir.join("authority");
        fs::create_dir_all(&dir).unwrap();
        self.authority(&authority);
        let folder = dir.to_str().unwrap();
        let make = servers_dir().join("make-pki");
        self.internet
            .run(make.to_str().unwrap(), &[&[folder], &NAMES[..]].concat())
            .ok();
        let root = authority.join("bundle-0.der");
        let server = scripts.join("server.py");
        let [server, root] = [&server, &root].map(|path| path.to_str().unwrap());
        // Without leaving compiled scripts beside the scripts.
        let python = in_venv(&venv, "python");
        let service = self.internet.spawn(&python, &["-B", server, "5000", root]);
        let service = self.internet.accepting(service, "127.0.0.1:5000").process;
        Aws {
            service,
            nginx: self.aws_nginx(),
            ca: dir.join("ca.pem").to_str().unwrap().to_owned(),
            authority,
            venv,
            scripts,
        }
    }
}

fn venv(scripts: &Path, part: &str) -> PathBuf {
    find_venv(scripts, part).expect("a Python that is new enough")
}

/// The environment of a part of the tests' AWS, if there is a Python for it; see `make-venv`.
fn find_venv(scripts: &Path, part: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let made = Command::new(scripts.join("make-venv"))
        .arg(target)
        .args(Some(part).filter(|part| !part.is_empty()))
        .output()
        .expect("cannot run make-venv");
    let complaint = String::from_utf8_lossy(&made.stderr);
    if made.status.code() == Some(3) {
        eprint!("SKIPPED: {complaint}");
        return None;
    }
    assert!(made.status.success(), "make-venv: {complaint}");
    let path = String::from_utf8(made.stdout).unwrap();
    Some(PathBuf::from(path.trim_end()))
}

fn in_venv(venv: &Path, program: &str) -> String {
    venv.join("bin").join(program).to_str().unwrap().to_owned()
}
