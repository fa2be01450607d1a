output "address" {
  description = "The parent's public address; it stays when the instance is replaced."
  value       = aws_eip.parent.public_ip
}

output "url" {
  description = "Where the first published TCP port is: for curl, with -k if the image signed its certificate itself."
  value       = try("https://${aws_eip.parent.public_ip}:${[for p in local.published : p.port if p.protocol == "tcp"][0]}/", null)
}

output "session" {
  description = "A shell on the parent. There: sudo host-netd status; sudo journalctl -u enclave@CID."
  value       = "aws ssm start-session --region ${var.region} --target ${aws_instance.parent.id}"
}

output "key_arn" {
  description = "The key that only the measured enclave may decrypt with."
  value       = aws_kms_key.enclave.arn
}

output "queue_urls" {
  description = "The queues of cards and of results."
  value       = { for name, queue in aws_sqs_queue.queue : name => queue.url }
}

output "role_arn" {
  description = "The parent's role, whose credentials the enclave has."
  value       = aws_iam_role.parent.arn
}
