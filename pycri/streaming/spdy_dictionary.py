# SPDX-License-Identifier: Apache-2.0
"""The zlib dictionary of SPDY/3 header blocks (SPDY draft 3, section 2.6.10.1)."""

import struct

_WORDS = b"""options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,
accept-language,accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,
content-language,content-length,content-location,content-md5,content-range,content-type,date,etag,
expect,expires,from,host,if-match,if-modified-since,if-none-match,if-range,if-unmodified-since,
last-modified,location,max-forwards,pragma,proxy-authenticate,proxy-authorization,range,referer,
retry-after,server,te,trailer,transfer-encoding,upgrade,user-agent,vary,via,warning,
www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,keep-alive,
origin"""

_TEXT = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    b"401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    b"503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    b"Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    b"application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,"
    b"deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)

DICTIONARY = (
    b"".join(struct.pack("!I", len(w)) + w for w in _WORDS.replace(b"\n", b"").split(b",")) + _TEXT
)
"""1423 bytes: words behind their lengths, as in a header block, then what values often hold."""
