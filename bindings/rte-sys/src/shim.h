/*
 * What bindgen reads: the installed DPDK headers, and declarations for what only exists in them as
 * static inlines or macros. Every `shim_*` function is the inline of the same name, compiled in
 * shim.c; every `shim_const_*` is the macro of the same name with its type written out (bindgen
 * drops the prefix). Nothing here has a meaning of its own.
 */
#ifndef RTE_SYS_SHIM_H
#define RTE_SYS_SHIM_H

/* For cpu_set_t, without which DPDK hides what takes one. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_thread.h>
#include <rte_version.h>

/* Sends DPDK's log to stderr (`stderr` is a macro); 22.11 writes to stdout otherwise. */
int shim_rte_openlog_stderr(void);

int shim_rte_errno(void);
unsigned int shim_rte_lcore_id(void);
uint64_t shim_rte_rdtsc(void);
void shim_rte_pause(void);

uint16_t shim_rte_eth_rx_burst(uint16_t port_id, uint16_t queue_id, struct rte_mbuf **rx_pkts,
                               uint16_t nb_pkts);
uint16_t shim_rte_eth_tx_burst(uint16_t port_id, uint16_t queue_id, struct rte_mbuf **tx_pkts,
                               uint16_t nb_pkts);

struct rte_mbuf *shim_rte_pktmbuf_alloc(struct rte_mempool *mp);
int shim_rte_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
void shim_rte_pktmbuf_free(struct rte_mbuf *m);
void shim_rte_pktmbuf_reset(struct rte_mbuf *m);
char *shim_rte_pktmbuf_prepend(struct rte_mbuf *m, uint16_t len);
char *shim_rte_pktmbuf_append(struct rte_mbuf *m, uint16_t len);
char *shim_rte_pktmbuf_adj(struct rte_mbuf *m, uint16_t len);
int shim_rte_pktmbuf_trim(struct rte_mbuf *m, uint16_t len);
uint16_t shim_rte_pktmbuf_headroom(const struct rte_mbuf *m);
uint16_t shim_rte_pktmbuf_tailroom(const struct rte_mbuf *m);
int shim_rte_pktmbuf_linearize(struct rte_mbuf *m);
const void *shim_rte_pktmbuf_read(const struct rte_mbuf *m, uint32_t off, uint32_t len, void *buf);
int shim_rte_pktmbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail);

void shim_rte_mempool_put_bulk(struct rte_mempool *mp, void *const *obj_table, unsigned int n);
int shim_rte_mempool_full(const struct rte_mempool *mp);

/* Macros whose value bindgen cannot work out, or would type by size instead of by use. */
#define SHIM_U64(name) static const uint64_t shim_const_##name = (name)

SHIM_U64(RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE);
SHIM_U64(RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
SHIM_U64(RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
SHIM_U64(RTE_ETH_TX_OFFLOAD_UDP_CKSUM);
SHIM_U64(RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
SHIM_U64(RTE_ETH_RX_OFFLOAD_IPV4_CKSUM);
SHIM_U64(RTE_ETH_RX_OFFLOAD_UDP_CKSUM);
SHIM_U64(RTE_ETH_RX_OFFLOAD_TCP_CKSUM);
SHIM_U64(RTE_ETH_RX_OFFLOAD_SCATTER);
SHIM_U64(RTE_ETH_RX_OFFLOAD_RSS_HASH);

SHIM_U64(RTE_ETH_RSS_IPV4);
SHIM_U64(RTE_ETH_RSS_FRAG_IPV4);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV4_TCP);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV4_UDP);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV4_SCTP);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV4_OTHER);
SHIM_U64(RTE_ETH_RSS_IPV6);
SHIM_U64(RTE_ETH_RSS_FRAG_IPV6);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV6_TCP);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV6_UDP);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV6_SCTP);
SHIM_U64(RTE_ETH_RSS_NONFRAG_IPV6_OTHER);
SHIM_U64(RTE_ETH_RSS_L3_DST_ONLY);
SHIM_U64(RTE_ETH_RSS_L4_SRC_ONLY);
SHIM_U64(RTE_ETH_RSS_L4_DST_ONLY);
SHIM_U64(RTE_ETH_RSS_IP);
SHIM_U64(RTE_ETH_RSS_TCP);
SHIM_U64(RTE_ETH_RSS_UDP);
SHIM_U64(RTE_ETH_RSS_SCTP);

/* Bit 63, which bindgen's signed arithmetic cannot hold: its number instead. */
static const uint32_t shim_const_RTE_ETH_RSS_L3_SRC_ONLY_BIT = __builtin_ctzll(RTE_ETH_RSS_L3_SRC_ONLY);

SHIM_U64(RTE_MBUF_F_RX_RSS_HASH);
SHIM_U64(RTE_MBUF_F_RX_IP_CKSUM_MASK);
SHIM_U64(RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN);
SHIM_U64(RTE_MBUF_F_RX_IP_CKSUM_BAD);
SHIM_U64(RTE_MBUF_F_RX_IP_CKSUM_GOOD);
SHIM_U64(RTE_MBUF_F_RX_IP_CKSUM_NONE);
SHIM_U64(RTE_MBUF_F_RX_L4_CKSUM_MASK);
SHIM_U64(RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN);
SHIM_U64(RTE_MBUF_F_RX_L4_CKSUM_BAD);
SHIM_U64(RTE_MBUF_F_RX_L4_CKSUM_GOOD);
SHIM_U64(RTE_MBUF_F_RX_L4_CKSUM_NONE);
SHIM_U64(RTE_MBUF_F_INDIRECT);
SHIM_U64(RTE_MBUF_F_EXTERNAL);

/* Where the fields of an mbuf are: their nesting changes between DPDK's versions, offsets do not. */
#define SHIM_OFFSET(field) static const uint32_t shim_const_MBUF_OFFSET_##field = offsetof(struct rte_mbuf, field)

SHIM_OFFSET(buf_addr);
SHIM_OFFSET(data_off);
SHIM_OFFSET(refcnt);
SHIM_OFFSET(nb_segs);
SHIM_OFFSET(port);
SHIM_OFFSET(ol_flags);
SHIM_OFFSET(packet_type);
SHIM_OFFSET(pkt_len);
SHIM_OFFSET(data_len);
SHIM_OFFSET(vlan_tci);
SHIM_OFFSET(hash);
SHIM_OFFSET(buf_len);
SHIM_OFFSET(pool);
SHIM_OFFSET(next);

#endif
