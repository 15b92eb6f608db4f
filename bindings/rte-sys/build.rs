//! Finds DPDK through pkg-config, compiles the shim, generates the bindings.
//!
//! Whatever is missing ends the build with one sentence that names the Debian package.

use std::env;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// DPDK's version as pkg-config writes it; older ones lack names the shim refers to.
const OLDEST: (u32, u32) = (22, 11);

/// `/`-free patterns, each anchored by bindgen: what erhu-dpdk and capsule-ffi use, no more.
const FUNCTIONS: &[&str] = &[
    "shim_rte_.*",
    "rte_eal_(init|cleanup|has_hugepages|get_runtime_dir|process_type|iova_mode)",
    "rte_(strerror|version|socket_id|socket_count|socket_id_by_idx|get_main_lcore|get_tsc_hz)",
    "rte_thread_(register|unregister|set_affinity)",
    "rte_log_set_(global_level|level_pattern)",
    "rte_dev_(probe|remove)",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|close|configure|count_avail|get_name_by_port|get_port_by_name|info_get)",
    "rte_eth_dev_(is_valid_port|rss_hash_conf_get|rss_hash_update|rss_reta_query|rss_reta_update)",
    "rte_eth_dev_(get_mtu|set_mtu|set_link_up|set_link_down|socket_id|start|stop)",
    "rte_eth_(allmulticast|promiscuous)_(enable|disable|get)",
    "rte_eth_(link_get_nowait|macaddr_get|dev_default_mac_addr_set|dev_mac_addr_add|stats_get|stats_reset)",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_mempool_(avail_count|calc_obj_size|free|in_use_count|lookup)",
    "rte_pktmbuf_(copy|free_bulk|pool_create)",
];
const TYPES: &[&str] = &[
    "rte_(mbuf|mempool|ether_addr|cpuset_t|iova_mode)",
    "rte_eth_(conf|dev_info|stats|link|rss_conf|rss_reta_entry64|rx_mq_mode|rxconf|txconf)",
];
const VARS: &[&str] = &[
    "shim_const_.*",
    "RTE_(MBUF_DEFAULT_BUF_SIZE|MBUF_DEFAULT_DATAROOM|PKTMBUF_HEADROOM|MAX_LCORE|MAX_ETHPORTS)",
    "RTE_(ETHER_ADDR_LEN|ETH_RETA_GROUP_SIZE|ETH_LINK_UP|ETH_LINK_FULL_DUPLEX|EAL_PMD_PATH)",
    "RTE_(MEMPOOL_CACHE_MAX_SIZE|VER_YEAR|VER_MONTH|CACHE_LINE_SIZE|ETH_SPEED_NUM_UNKNOWN|ETH_SPEED_NUM_NONE)",
    "RTE_(MBUF_PORT_INVALID|ETH_MQ_RX_.*)",
    "LCORE_ID_ANY",
];

fn main() {
    for file in ["build.rs", "src/shim.c", "src/shim.h"] {
        println!("cargo:rerun-if-changed={file}");
    }
    for variable in ["PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "LIBCLANG_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let flags = probe();
    compile_shim(&flags.compile);
    generate(&flags.compile, &out);
    for (kind, value) in &flags.link {
        println!("cargo:rustc-link-{kind}={value}");
    }
}

struct Flags {
    compile: Vec<String>,
    link: Vec<(&'static str, String)>,
}

fn probe() -> Flags {
    let version = pkg_config("--modversion");
    let mut parts = version.trim().split('.').map(|part| part.parse().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < OLDEST {
        stop(&format!(
            "DPDK {}.{} or newer is needed, pkg-config found {}; on Debian 12: apt-get install libdpdk-dev",
            OLDEST.0,
            OLDEST.1,
            version.trim()
        ));
    }
    let compile = words(&pkg_config("--cflags"));
    let link = words(&pkg_config("--libs"))
        .into_iter()
        .filter_map(|word| {
            if let Some(library) = word.strip_prefix("-l") {
                // DPDK's own are shared on purpose: drivers are plugins that resolve against them.
                Some(("lib", format!("dylib={library}")))
            } else {
                word.strip_prefix("-L").map(|folder| ("search", format!("native={folder}")))
            }
        })
        .collect();
    Flags { compile, link }
}

/// Runs pkg-config on libdpdk; only its absence and libdpdk's are told apart, the rest is quoted.
fn pkg_config(question: &str) -> String {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let answer = match Command::new(&program).args([question, "libdpdk"]).output() {
        Ok(answer) => answer,
        Err(error) => stop(&format!(
            "cannot run {} ({error}); on Debian: apt-get install pkg-config",
            Path::new(&program).display()
        )),
    };
    if !answer.status.success() {
        stop(&format!(
            "DPDK's development files were not found; on Debian: apt-get install libdpdk-dev\n{}",
            String::from_utf8_lossy(&answer.stderr).trim()
        ));
    }
    String::from_utf8_lossy(&answer.stdout).into_owned()
}

/// pkg-config's output has no quoting in DPDK's case; flags are separated by blanks.
fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn compile_shim(flags: &[String]) {
    let mut build = cc::Build::new();
    build.file("src/shim.c").opt_level(3).warnings(true);
    for flag in flags {
        build.flag(flag);
    }
    // Headers of DPDK trip over pedantic warnings of newer compilers; the shim itself has no logic.
    build.flag_if_supported("-Wno-unused-parameter").flag_if_supported("-Wno-address-of-packed-member");
    build.flag_if_supported("-Wno-deprecated-declarations");
    if let Err(error) = build.try_compile("rte_sys_shim") {
        stop(&format!("the C shim did not compile; on Debian: apt-get install gcc libc6-dev libdpdk-dev\n{error}"));
    }
}

/// `shim_const_X` is `X` with its type written out.
#[derive(Debug)]
struct DropPrefix;

impl bindgen::callbacks::ParseCallbacks for DropPrefix {
    fn item_name(&self, item: bindgen::callbacks::ItemInfo) -> Option<String> {
        item.name.strip_prefix("shim_const_").map(str::to_owned)
    }
}

fn generate(flags: &[String], out: &Path) {
    let mut builder = bindgen::Builder::default()
        .header("src/shim.h")
        .clang_args(flags)
        .parse_callbacks(Box::new(DropPrefix))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(true)
        .derive_default(true)
        .derive_debug(false)
        // Reached by pointer only; their contents drag in half of the EAL.
        .opaque_type("rte_(device|mempool_ops|memzone|mempool_cache|mempool_memhdr_list|mempool_objhdr_list)")
        .opaque_type("rte_mbuf_ext_shared_info|rte_eth_dev|eth_dev_ops|rte_intr_handle")
        .formatter(bindgen::Formatter::None);
    for pattern in FUNCTIONS {
        builder = builder.allowlist_function(pattern);
    }
    for pattern in TYPES {
        builder = builder.allowlist_type(pattern);
    }
    for pattern in VARS {
        builder = builder.allowlist_var(pattern);
    }
    // bindgen panics where libclang cannot be loaded; its backtrace would hide the remedy.
    panic::set_hook(Box::new(|_| {}));
    let generated = panic::catch_unwind(panic::AssertUnwindSafe(|| builder.generate()));
    let _ = panic::take_hook();
    match generated {
        Ok(Ok(bindings)) => bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable"),
        Ok(Err(error)) => {
            stop(&format!("bindgen could not read DPDK's headers (clang's own are in libclang-dev): {error}"))
        }
        Err(panicked) => {
            let reason = panicked
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panicked.downcast_ref::<&str>().copied())
                .unwrap_or("bindgen panicked");
            stop(&format!("libclang could not be used; on Debian: apt-get install libclang-dev\n{reason}"))
        }
    }
}

fn stop(reason: &str) -> ! {
    eprintln!("rte-sys: {reason}");
    exit(1)
}
